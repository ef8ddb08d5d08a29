"""Small flax.linen classifiers whose only trained state is the collection `params`.

All are called as `model.apply({"params": params}, inputs, train=..., rngs={"dropout": key})` and
return logits. The key is needed with `train=True` and a dropout rate above zero; how batch
normalization predicts is told in `hgrad_jax.models.batch_norm`.
"""

from collections.abc import Callable, Sequence

from flax import linen as nn
from jax import Array

from hgrad_jax.models.batch_norm import BatchNorm

Activation = Callable[[Array], Array]


class SoftmaxRegression(nn.Module):
    """Multinomial logistic regression, starting from zero.

    Attributes:
      num_classes: number of classes C.

    >>> import jax, jax.numpy as jnp
    >>> model, x = SoftmaxRegression(num_classes=10), jnp.ones((2, 64))
    >>> params = model.init(jax.random.key(0), x)["params"]
    >>> model.apply({"params": params}, x).shape
    (2, 10)
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns logits [B, C] for inputs [B, *shape]; `train` makes no difference."""
        del train
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(x)


class MLP(nn.Module):
    """A fully connected network.

    Attributes:
      features: width of every layer; the last one is the number of classes and stays linear.
      activation: applied after each hidden layer. A smooth one (tanh, gelu) has second derivatives
        everywhere; those of relu are zero where they exist.
      dropout_rate: probability of zeroing a hidden unit in training, 0 <= dropout_rate < 1.
      batch_norm: whether hidden layers are normalized before the activation.

    >>> import jax, jax.numpy as jnp
    >>> model, x = MLP(features=(50, 10), dropout_rate=0.1), jnp.ones((2, 8, 8))
    >>> params = model.init(jax.random.key(0), x, train=False)["params"]
    >>> rngs = {"dropout": jax.random.key(1)}
    >>> model.apply({"params": params}, x, train=True, rngs=rngs).shape
    (2, 10)
    """

    features: Sequence[int]
    activation: Activation = nn.relu
    dropout_rate: float = 0.0
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Returns logits [B, features[-1]] for inputs [B, *shape], which are flattened."""
        x = x.reshape((x.shape[0], -1))
        for width in self.features[:-1]:
            x = nn.Dense(width, use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = BatchNorm()(x, train=train)
            x = self.activation(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.features[-1])(x)


class CNN(nn.Module):
    """A small convolutional network: 3x3 convolutions, each halving the image, then an `MLP`.

    Attributes:
      num_classes: number of classes.
      channels: channels of each convolution.
      hidden: widths of the hidden layers between the last convolution and the logits.
      activation: applied after each convolution and hidden layer.
      max_pool: whether an image is halved by 2x2 maxima; if not, by a stride of 2.
      dropout_rate: probability of zeroing a hidden unit in training, not in the convolutions.
      batch_norm: whether convolutions and hidden layers are normalized before the activation.

    >>> import jax, jax.numpy as jnp
    >>> model, x = CNN(num_classes=10, channels=(4, 8)), jnp.ones((2, 28, 28, 1))
    >>> params = model.init(jax.random.key(0), x, train=False)["params"]
    >>> model.apply({"params": params}, x, train=False).shape
    (2, 10)
    """

    num_classes: int
    channels: Sequence[int] = (16, 32)
    hidden: Sequence[int] = (64,)
    activation: Activation = nn.relu
    max_pool: bool = True
    dropout_rate: float = 0.0
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Returns logits [B, num_classes] for images [B, H, W, C], H and W >= 2**len(channels)."""
        strides = (1, 1) if self.max_pool else (2, 2)
        for width in self.channels:
            x = nn.Conv(width, (3, 3), strides=strides, use_bias=not self.batch_norm)(x)
            if self.batch_norm:
                x = BatchNorm()(x, train=train)
            x = self.activation(x)
            if self.max_pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        head = MLP(
            features=(*self.hidden, self.num_classes),
            activation=self.activation,
            dropout_rate=self.dropout_rate,
            batch_norm=self.batch_norm,
        )
        return head(x, train=train)

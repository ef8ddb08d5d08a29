"""Small flax.linen classifiers whose only trained state is the collection `params`.

All are called as `model.apply({"params": params}, inputs, train=..., rngs={"dropout": key})` and
return logits. The key is needed with `train=True` and a dropout rate above zero; how batch
normalization predicts is told in `hgrad_jax.models.batch_norm`, how weights may start in
`hgrad_jax.models.initializers`.
"""

from collections.abc import Callable, Sequence

from flax import linen as nn
from jax import Array

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.models.batch_norm import BatchNorm
from hgrad_jax.models.initializers import Initializer, lecun_normal, zeros
from hgrad_jax.models.settings import (
    require_callables,
    require_num_classes,
    require_rate,
    require_widths,
)

Activation = Callable[[Array], Array]


class SoftmaxRegression(nn.Module):
    """Multinomial logistic regression.

    Attributes:
      num_classes: number of classes C.
      use_bias: whether something is added to each logit.
      kernel_init: how the weights start: at zero, from which the convex problem loses nothing.
      bias_init: how the biases start.

    >>> import jax, jax.numpy as jnp
    >>> model, x = SoftmaxRegression(num_classes=10), jnp.ones((2, 64))
    >>> params = model.init(jax.random.key(0), x)["params"]
    >>> model.apply({"params": params}, x).shape
    (2, 10)
    """

    num_classes: int
    use_bias: bool = True
    kernel_init: Initializer = zeros
    bias_init: Initializer = zeros

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Returns logits [B, C] for inputs [B, *shape]; `train` makes no difference.

        Raises:
          TypeError, ValueError: an attribute is not what it should be.
        """
        del train
        num_classes = require_num_classes(self.num_classes)
        taken(use_bias=self.use_bias)
        kernel_init, bias_init = require_callables(
            kernel_init=self.kernel_init, bias_init=self.bias_init
        )
        x = x.reshape((x.shape[0], -1))
        return nn.Dense(
            num_classes,
            use_bias=self.use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
        )(x)


class MLP(nn.Module):
    """A fully connected network.

    `MLP(features, activation=nn.sigmoid, use_bias=False)` is the net of logistic units without
    biases.

    Attributes:
      features: width of every layer; the last one is the number of classes and stays linear.
      activation: applied after each hidden layer. A smooth one (tanh, gelu) has second derivatives
        everywhere; those of relu are zero where they exist.
      dropout_rate: probability of zeroing a hidden unit in training, 0 <= dropout_rate < 1.
      batch_norm: whether hidden layers are normalized before the activation; what is added after
        that replaces their biases.
      use_bias: whether layers have biases.
      kernel_init: how weights start: one for all layers, or a sequence of one for each.
      bias_init: how biases start.

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
    use_bias: bool = True
    kernel_init: Initializer | Sequence[Initializer] = lecun_normal()
    bias_init: Initializer = zeros

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Returns logits [B, features[-1]] for inputs [B, *shape], which are flattened.

        Raises:
          TypeError: the activation, or an initializer, is no function.
          ValueError: there are no features, or the dropout rate is outside [0, 1).
        """
        if not isinstance(self.features, Sequence) or not self.features:
            raise ValueError(
                f"features is {self.features!r}; give the widths of all layers, the last of which "
                "is the number of classes: (50, 10)."
            )
        *widths, out = require_widths("features", self.features)
        require_rate(self.dropout_rate)
        taken(batch_norm=self.batch_norm, use_bias=self.use_bias)
        activation, bias_init = require_callables(
            activation=self.activation, bias_init=self.bias_init
        )
        x = x.reshape((x.shape[0], -1))
        *hidden, last = _each(self.kernel_init, len(widths) + 1)
        has_bias = self.use_bias and not self.batch_norm
        for width, init in zip(widths, hidden, strict=True):
            x = nn.Dense(width, has_bias, kernel_init=init, bias_init=bias_init)(x)
            if self.batch_norm:
                x = BatchNorm()(x, train=train)
            x = activation(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(out, self.use_bias, kernel_init=last, bias_init=bias_init)(x)


class CNN(nn.Module):
    """A small convolutional network: 3x3 convolutions that halve the image, then an `MLP`.

    Attributes:
      num_classes: number of classes.
      channels: channels of each convolution.
      hidden: widths of the hidden layers between the last convolution and the logits.
      activation: applied after each convolution and hidden layer.
      max_pool: whether an image is halved by 2x2 maxima; if not, by a stride of 2.
      halves: for each convolution whether it halves the image; None for all of them.
        `CNN(10, channels=(2, 4), halves=(False, True))` on 28x28 images has a first hidden layer of
        784 inputs.
      dropout_rate: probability of zeroing a hidden unit in training, not in the convolutions.
      batch_norm: whether convolutions and hidden layers are normalized before the activation.
      use_bias: whether layers have biases, as in `MLP`.
      kernel_init: how weights start: one for all layers, or a sequence of one for each, the
        convolutions first.
      bias_init: how biases start.

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
    halves: Sequence[bool] | None = None
    dropout_rate: float = 0.0
    batch_norm: bool = False
    use_bias: bool = True
    kernel_init: Initializer | Sequence[Initializer] = lecun_normal()
    bias_init: Initializer = zeros

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Returns logits [B, num_classes] for images [B, H, W, C].

        Raises:
          TypeError: the activation, or an initializer, is no function.
          ValueError: the images have no axis of channels or are too small, `halves` does not fit,
            or the dropout rate is outside [0, 1).
        """
        if x.ndim != 4:
            raise ValueError(
                f"a CNN takes images [B, H, W, C]: got {list(x.shape)}; reshape them, with an axis "
                "of one channel if need be."
            )
        channels, hidden = (
            require_widths(name, getattr(self, name)) for name in ("channels", "hidden")
        )
        num_classes = require_num_classes(self.num_classes)
        require_rate(self.dropout_rate)
        taken(batch_norm=self.batch_norm, use_bias=self.use_bias, max_pool=self.max_pool)
        activation, bias_init = require_callables(
            activation=self.activation, bias_init=self.bias_init
        )
        depth = len(channels)
        halves = (True,) * depth if self.halves is None else self.halves
        if not isinstance(halves, Sequence):
            raise ValueError(f"halves is {halves!r}; give a bool for each of {depth} convolutions.")
        if len(halves) != depth:
            raise ValueError(
                f"halves has {len(halves)} entries for {depth} convolutions; give one for each."
            )
        inits = _each(self.kernel_init, depth + len(hidden) + 1)
        for width, is_halved, init in zip(channels, halves, inits[:depth], strict=True):
            x = nn.Conv(
                width,
                (3, 3),
                strides=(2, 2) if is_halved and not self.max_pool else (1, 1),
                use_bias=self.use_bias and not self.batch_norm,
                kernel_init=init,
                bias_init=bias_init,
            )(x)
            if self.batch_norm:
                x = BatchNorm()(x, train=train)
            x = activation(x)
            if is_halved and self.max_pool and min(x.shape[1:3]) < 2:
                raise ValueError(
                    f"an image of {x.shape[1]} x {x.shape[2]} cannot be halved again: take fewer "
                    f"channels than {list(channels)}, or halves=."
                )
            if is_halved and self.max_pool:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        head = MLP(
            features=(*hidden, num_classes),
            activation=self.activation,
            dropout_rate=self.dropout_rate,
            batch_norm=self.batch_norm,
            use_bias=self.use_bias,
            kernel_init=inits[depth:],
            bias_init=self.bias_init,
        )
        return head(x, train=train)


def _each(init: Initializer | Sequence[Initializer], num_layers: int) -> tuple[Initializer, ...]:
    """Returns an initializer for every layer."""
    if not isinstance(init, Sequence) or isinstance(init, str):
        return require_callables(kernel_init=init) * num_layers
    each = require_callables(**{f"kernel_init[{i}]": one for i, one in enumerate(init)})
    if len(init) != num_layers:
        raise ValueError(
            f"kernel_init has {len(init)} initializers for {num_layers} layers; give one for each, "
            "or a single one for all."
        )
    return each

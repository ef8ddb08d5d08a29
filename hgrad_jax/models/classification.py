"""A flax classifier's training loss and its metrics, in the forms that rules and `fit` take."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import InvalidRngError
from jax import Array

from hgrad_jax.data.dataset import num_examples
from hgrad_jax.inputs.functions import positive_int
from hgrad_jax.models.batch_norm import batch_statistics
from hgrad_jax.models.losses import cross_entropy, fraction, is_misclassified
from hgrad_jax.models.settings import pair, require_model
from hgrad_jax.types import Loss


def classification_loss(model: nn.Module) -> Loss:
    """Returns the mean cross-entropy of a batch, as a function to be trained with any rule.

    Args:
      model: its `__call__(inputs, train=...)` returns logits, and `params` is all it trains.

    Returns:
      `loss(params, hparams, batch, key) -> scalar` in nats. The batch is a `Dataset` or a pair
      (inputs [B, *shape], labels as `cross_entropy` takes them); `hparams` is not used; the key is
      for dropout and may be None where there is none. The model is called with `train=True`. It
      raises ValueError if the model needs a key and has none.

    >>> from hgrad_jax.models import SoftmaxRegression
    >>> model, x, y = SoftmaxRegression(num_classes=4), jnp.ones((3, 2)), jnp.array([0, 1, 3])
    >>> params = model.init(jax.random.key(0), x)["params"]
    >>> print(f"{classification_loss(model)(params, {}, (x, y), None):.4f}")
    1.3863
    """
    require_model(model)

    def loss(params: Any, hparams: Any, batch: Any, key: Array | None) -> Array:
        del hparams
        inputs, labels = pair(batch)
        rngs = {} if key is None else {"dropout": key}
        try:
            logits = model.apply({"params": params}, inputs, train=True, rngs=rngs)
        except InvalidRngError as error:
            raise ValueError(
                "key is None, but the model draws random numbers (dropout, as a rule); pass "
                "key=jax.random.key(0)."
            ) from error
        return cross_entropy(jnp.asarray(logits), labels)

    return loss


def classification_metrics(
    model: nn.Module, *, batch_size: int = 1000
) -> Callable[..., dict[str, Array]]:
    """Returns a function that measures a classifier on a data set, without dropout.

    Args:
      model: its `__call__(inputs, train=...)` returns logits, and `params` is all it trains.
      batch_size: examples evaluated at once, which bounds the memory.

    Returns:
      `metrics(params, data, train_inputs=None) -> {"loss": ..., "accuracy": ...}`, two scalars: the
      mean cross-entropy in nats and the fraction classified correctly. The data are a `Dataset` or
      a pair (inputs, labels). A model with batch normalization needs `train_inputs` [N, *shape]: it
      predicts with their statistics, in batches of the same size (see `batch_statistics`).

    Raises:
      ValueError: batch_size is not a positive integer; or, when metrics are evaluated, the model
        has batch normalization and `train_inputs` is None.

    >>> from hgrad_jax.models import SoftmaxRegression
    >>> model, x, y = SoftmaxRegression(num_classes=4), jnp.ones((4, 2)), jnp.array([0, 1, 3, 0])
    >>> params = model.init(jax.random.key(0), x)["params"]
    >>> measured = classification_metrics(model)(params, (x, y))
    >>> print(f"{measured['loss']:.4f}, {measured['accuracy']}")
    1.3863, 0.5
    """
    batch_size = positive_int("batch_size", batch_size)
    require_model(model)

    def metrics(params: Any, data: Any, train_inputs: Any = None) -> dict[str, Array]:
        inputs, labels = pair(data)
        n = num_examples((inputs, labels))
        variables = {"params": params} | _statistics(
            model, params, inputs, train_inputs, batch_size
        )

        def summed(batch: tuple[Array, Array]) -> Array:
            x, y = batch
            logits = jnp.asarray(model.apply(variables, x, train=False))
            is_wrong = is_misclassified(logits, y)
            loss = x.shape[0] * cross_entropy(logits, y)
            counts = jnp.stack([jnp.sum(~is_wrong), jnp.sum(is_wrong)])
            return jnp.concatenate([loss[None], counts.astype(loss.dtype)])

        size = min(batch_size, n)
        num_whole, rest = divmod(n, size)
        batches = jax.tree.map(
            lambda x: x[: n - rest].reshape(num_whole, size, *x.shape[1:]),
            (jnp.asarray(inputs), jnp.asarray(labels)),
        )
        total = jnp.sum(jax.lax.map(summed, batches), axis=0)
        if rest:
            total += summed((jnp.asarray(inputs[n - rest :]), jnp.asarray(labels[n - rest :])))
        loss, num_right, num_wrong = total
        return {"loss": loss / n, "accuracy": fraction(num_right, num_wrong)}

    return metrics


def _statistics(
    model: nn.Module, params: Any, inputs: Any, train_inputs: Any, batch_size: int
) -> dict[str, Any]:
    """Returns the collection `batch_stats`, or nothing for a model without batch normalization."""

    def measured(x: Any) -> Any:
        return batch_statistics(model, params, x, batch_size=min(batch_size, num_examples(x)))

    if not jax.tree.leaves(jax.eval_shape(lambda: measured(inputs[:1]))):
        return {}
    if train_inputs is None:
        raise ValueError(
            "train_inputs is None, but the model has batch normalization, which predicts with the "
            "statistics of the training data: call metrics(params, data, train_inputs), or pass "
            "metrics_args=(train.inputs,) to fit."
        )
    return {"batch_stats": measured(train_inputs)}

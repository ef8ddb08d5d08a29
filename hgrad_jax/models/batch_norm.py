"""Batch normalization without running averages (Ioffe and Szegedy, 2015, algorithms 1 and 2).

In training a layer uses the statistics of its batch and keeps none, so a trajectory's state is the
parameters alone. For prediction, `batch_statistics` makes one pass over the training data; what it
returns is passed to the model as the collection `batch_stats`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import FlaxError
from jax import Array

from hgrad_jax.data.dataset import num_examples
from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import as_int
from hgrad_jax.models.settings import require_model
from hgrad_jax.runs.validate import floating


class BatchNorm(nn.Module):
    """Normalizes each channel to mean zero and variance one, then scales and shifts it.

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Returns scale * (x - mean) / sqrt(var + epsilon) + bias.

        Args:
          x: floating point [*batch, C].
          train: whether mean and variance are the batch's own. If not, they are those in the
            collection `batch_stats`, or, if the caller made that mutable, the batch's own, which
            are then stored in it.

        Returns:
          Array like x.

        Raises:
          ValueError: train is False and there are no statistics.
        """
        (epsilon,) = taken(epsilon=self.epsilon)
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        is_measured = self.is_mutable_collection("batch_stats")  # as all collections are in init
        if train or is_measured:
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(x, axes), jnp.var(x, axes)
            if not train and not self.is_initializing():
                self.put_variable("batch_stats", "mean", mean)
                self.put_variable("batch_stats", "var", var)
        elif self.has_variable("batch_stats", "mean"):
            mean = self.get_variable("batch_stats", "mean")
            var = self.get_variable("batch_stats", "var")
        else:
            raise ValueError(
                "train=False needs the statistics of the training data: apply the model to "
                '{"params": params, "batch_stats": batch_statistics(model, params, inputs)}.'
            )
        return (x - mean) * jax.lax.rsqrt(var + epsilon) * scale + bias


def batch_statistics(
    model: nn.Module, params: Any, inputs: Array, *, batch_size: int | None = None
) -> Any:
    """Returns the mean and variance of every `BatchNorm` layer's input over the training data.

    With `batch_size` None these are the statistics of one batch that is all of `inputs`: exact, but
    every layer's output for it is in memory at once. Else they are averaged over batches: the
    mean of the batches' means, and the variance within batches plus that of their means (exact in
    the first normalized layer; the later ones see inputs normalized by batch, as in training).

    Args:
      model: its `__call__` takes `train`; dropout is off, as `train` is False.
      params: the collection `params`.
      inputs: training inputs [N, *shape].
      batch_size: examples a batch, in order, the last one shorter; None for N.

    Returns:
      The collection `batch_stats`; an empty one for a model without `BatchNorm`.

    Raises:
      ValueError: batch_size is not in 1..N.

    >>> layer, x = BatchNorm(), jnp.arange(8.0).reshape(4, 2)
    >>> params = layer.init(jax.random.key(0), x, train=True)["params"]
    >>> {name: value.tolist() for name, value in batch_statistics(layer, params, x).items()}
    {'mean': [3.0, 4.0], 'var': [5.0, 5.0]}
    """
    require_model(model)
    if jax.tree.leaves(params):  # a model may have none
        params = floating(params, "params")
    (inputs,) = taken(inputs=inputs)
    if not inputs.ndim:
        raise ValueError("inputs is one number; it must be an array [N, *shape] of examples.")
    n = num_examples(inputs, "inputs")
    size = n if batch_size is None else as_int(batch_size)
    if size is None:
        raise ValueError(f"batch_size is {batch_size!r}; it must be a positive int, or None.")
    if not 1 <= size <= n:
        raise ValueError(f"batch_size must be in 1..{n}, the number of inputs: got {batch_size}.")

    inputs = jnp.asarray(inputs)
    num_whole, rest = divmod(n, size)
    whole = inputs[: n - rest].reshape(num_whole, size, *inputs.shape[1:])
    stats = jax.lax.map(lambda batch: _measure(model, params, batch), whole)
    weights = jnp.full((num_whole,), size / n)
    if rest:
        last = _measure(model, params, inputs[n - rest :])
        stats = jax.tree.map(lambda s, x: jnp.concatenate([s, x[None]]), stats, last)
        weights = jnp.append(weights, rest / n)
    return jax.tree.map(
        lambda layer: _pool(layer["mean"], layer["var"], weights), stats, is_leaf=_is_layer
    )


def _measure(model: nn.Module, params: Any, batch: Array) -> Any:
    """Returns the collection `batch_stats` for one batch, without dropout."""
    try:
        _, updated = model.apply({"params": params}, batch, train=False, mutable=["batch_stats"])
    except FlaxError as error:
        raise ValueError(f"params and inputs do not fit the model: {error}") from error
    return updated.get("batch_stats", {})


def _is_layer(stats: Any) -> bool:
    return isinstance(stats, dict) and "mean" in stats


def _pool(means: Array, variances: Array, weights: Array) -> dict[str, Array]:
    """Returns mean and variance of a union from those of its parts, all [K, C], weights [K]."""
    mean = weights @ means
    # Not E[x**2] - mean**2, which cancels where the mean is large.
    return {"mean": mean, "var": weights @ (variances + (means - mean) ** 2)}

"""Classification losses, safe for large logits and differentiable twice."""

import jax
import jax.numpy as jnp
from jax import Array

from hgrad_jax.inputs.arguments import taken


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the mean over examples of -sum_c q_c log softmax(logits)_c.

    q is the label itself, or for an integer label the distribution that is 1 at its class.

    Args:
      logits: floating point [*batch, C].
      labels: integers [*batch] in 0..C-1, or distributions [*batch, C] (one-hot, smoothed, learned;
        the gradient reaches them).

    Returns:
      A scalar of the logits' dtype, in nats; NaN, with its gradient, if an integer label is not in
      0..C-1.

    Raises:
      ValueError: the shapes do not belong together, or labels without a class axis are no integers.

    >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])) == jnp.log(4.0)
    Array(True, dtype=bool)
    """
    logits, labels = taken(logits=logits, labels=labels)
    is_index = _is_index(logits, labels)
    log_probs = jax.nn.log_softmax(logits)
    if not is_index:
        return -jnp.mean(jnp.sum(labels.astype(logits.dtype) * log_probs, axis=-1))
    # A product with the one-hot matrix: the gradient of a gather is a scatter, whose order of
    # summation is not fixed on every device.
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    # In the targets, so that the gradient, which is all that training sees, is NaN too.
    targets = jnp.where(is_class[..., None], targets, jnp.nan)
    return -jnp.mean(jnp.sum(targets * log_probs, -1))


def error_rate(logits: Array, labels: Array) -> Array:
    """Returns the fraction of examples whose largest logit is not at the label's class.

    Piecewise constant: its gradient is zero. Among equal logits the first counts as the largest;
    logits with a NaN are an error, whatever the label.

    Args:
      logits: floating point [*batch, C].
      labels: integers [*batch], or distributions [*batch, C] whose largest entry is the class.

    Returns:
      float32 scalar in [0, 1].

    Raises:
      ValueError: as `cross_entropy`.

    >>> error_rate(jnp.eye(4), jnp.array([0, 1, 2, 0])).item()
    0.25
    """
    is_wrong = is_misclassified(logits, labels)
    return fraction(jnp.sum(is_wrong), jnp.sum(~is_wrong))


def is_misclassified(logits: Array, labels: Array) -> Array:
    """Returns for each example whether its largest logit is elsewhere: bool [*batch].

    Args, Raises: as `error_rate`.
    """
    logits, labels = taken(logits=logits, labels=labels)
    classes = labels if _is_index(logits, labels) else jnp.argmax(labels, axis=-1)
    return (jnp.argmax(logits, axis=-1) != classes) | jnp.isnan(logits).any(-1)


def fraction(count: Array, others: Array) -> Array:
    """Returns count / (count + others) to the last bit, float32.

    By a constant number of examples XLA would multiply with its reciprocal, and of 41 examples all
    would be 0.99999994.
    """
    count = count.astype(jnp.float32)
    return count / (count + others.astype(jnp.float32))


def _is_index(logits: Array, labels: Array) -> bool:
    """Tells integer labels [*batch] from distributions [*batch, C]."""
    if labels.shape == logits.shape and logits.ndim:
        return False
    if labels.shape != logits.shape[:-1] or not logits.ndim:
        raise ValueError(
            f"logits {list(logits.shape)} need labels {list(logits.shape[:-1])} or "
            f"{list(logits.shape)}: got {list(labels.shape)}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels {list(labels.shape)} must be integers: got {labels.dtype}.")
    return True

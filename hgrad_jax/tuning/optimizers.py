"""Ready-made optimizers of hyperparameters, as optax transformations. Others serve too."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from hgrad_jax.inputs.arguments import narrow
from hgrad_jax.inputs.functions import is_number, require_arrays, require_function, returning_arrays
from hgrad_jax.tools.trees import is_like, shown
from hgrad_jax.types import Hparams


def sign_descent(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.0
) -> optax.GradientTransformation:
    """Returns descent by the sign of the hypergradient, h' = h - learning_rate sign(g).

    Hypergradients differ by orders of magnitude between layers and steps of the training; their
    signs do not, nor do those of approximate ones lose as much. With momentum m the sign is that of
    the decayed sum u' = m u + g (Bernstein et al. 2018).

    Args:
      learning_rate: what a hyperparameter changes by, positive; or an optax schedule of it.
      momentum: 0 <= m < 1. It may be traced, as the learning rate may.

    Raises:
      ValueError: the learning rate is not positive, or momentum is out of range.
      TypeError: the learning rate is neither a number nor a function.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> optimizer = hg.sign_descent(0.25)
      >>> hparams = jnp.zeros(3)
      >>> optimizer.update(jnp.array([3.0, -0.1, 0.0]), optimizer.init(hparams))[0]
      Array([-0.25,  0.25, -0.  ], dtype=float32)
    """
    learning_rate = _positive(learning_rate)
    _require_decay(momentum=momentum)
    return optax.chain(
        optax.identity() if is_number(momentum) and not momentum else optax.trace(momentum),
        optax.scale_by_sign(),
        optax.scale_by_learning_rate(learning_rate),
    )


def nonnegative_adam(
    learning_rate: optax.ScalarOrSchedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Returns Adam whose steps end at zero where they would go below.

    For learning rates and coefficients that are tuned as they are. A logarithm (`hg.hyper.log`)
    keeps them above zero, and changes them by factors.

    Args:
      learning_rate: positive; or an optax schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: what is added to its root.

    Raises:
      ValueError: the learning rate is not positive, or a decay or eps is out of range.
      TypeError: it is neither a number nor a function.

    Example:
      >>> import jax.numpy as jnp, optax, hgrad_jax as hg
      >>> optimizer, hparams = hg.nonnegative_adam(0.5), jnp.array([0.25, 1.0])
      >>> update, _ = optimizer.update(jnp.ones(2), optimizer.init(hparams), hparams)
      >>> print(optax.apply_updates(hparams, update).round(4))
      [0.  0.5]
    """
    learning_rate = _positive(learning_rate)
    _require_decay(b1=b1, b2=b2)
    if not _is_real(eps) or not (isinstance(eps, Tracer) or 0 <= eps < jnp.inf):
        raise ValueError(f"eps is {eps!r}; it must be a number, at least 0.")
    eps = narrow(eps)
    return optax.chain(
        optax.adam(learning_rate, b1=b1, b2=b2, eps=eps), optax.keep_params_nonnegative()
    )


def projected(
    optimizer: optax.GradientTransformation, projection: Callable[[Hparams], Hparams]
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer whose steps end at the projection of where they would go.

    h' = P(h + u), with the optimizer's update u: projected gradient descent (Goldstein 1964;
    Levitin and Polyak 1966), for hyperparameters that are constrained together, or that are to
    reach their bounds, as weights of examples in [0, 1]: those behind a map of `hg.hyper` never do.
    The last addition rounds: h' may be one unit of the last place outside.

    Args:
      optimizer: an optax transformation, whose state is kept as it is.
      projection: `projection(hparams) -> hparams`, of the whole tree: one of `optax.projections`,
        its other arguments given by `functools.partial`, or any function. The hyperparameters a
        tuning starts from are not projected.

    Raises:
      TypeError: the optimizer is no optax transformation, or the projection is no function.
      ValueError: in `update`, there are no hyperparameters, or the projection changes structure,
        shapes or dtypes.

    Example:
      >>> import jax.numpy as jnp, optax, hgrad_jax as hg
      >>> optimizer = hg.projected(optax.sgd(0.5), optax.projections.projection_hypercube)
      >>> hparams = jnp.array([0.25, 0.75, 0.5])
      >>> gradient = jnp.array([1.0, -1.0, 0.5])
      >>> update, _ = optimizer.update(gradient, optimizer.init(hparams), hparams)
      >>> optax.apply_updates(hparams, update)
      Array([0.  , 1.  , 0.25], dtype=float32)
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"optimizer is {optimizer!r}; it must be an optax transformation, such as "
            "optax.adam(0.1)."
        )
    require_function(
        projection,
        "projection(hparams)",
        "a function of the hyperparameters alone, its bounds given: "
        "functools.partial(optax.projections.projection_box, lower=0.0, upper=1.0)",
    )
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "params is None, but projected needs the hyperparameters to step from; call "
                "optimizer.update(gradient, state, hparams)."
            )
        updates, state = inner.update(updates, state, params, **extra)
        free = optax.apply_updates(params, updates)
        ends = projection(free)
        require_arrays(ends, "projection(hparams)")
        if not is_like(ends, free, _kind):
            raise ValueError(
                f"projection returned {shown(ends, _kind)} for hyperparameters "
                f"{shown(free, _kind)}; it must keep structure, shapes and dtypes."
            )
        return jax.tree.map(jnp.subtract, ends, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _kind(x: Any) -> str:
    return f"{jnp.result_type(x)}{list(jnp.shape(x))}"


def _is_real(value: Any) -> bool:
    """Returns whether a value is a number, or a scalar array of one, as optax injects them."""
    is_scalar = isinstance(value, jax.Array | np.ndarray) and value.shape == ()
    return is_number(value) or (is_scalar and bool(jnp.issubdtype(value.dtype, jnp.floating)))


def _require_decay(**decays: Any) -> None:
    for name, decay in decays.items():
        if not _is_real(decay) or not (isinstance(decay, Tracer) or 0 <= decay < 1):
            raise ValueError(f"{name} is {decay!r}; it must be at least 0 and below 1.")


def _positive(learning_rate: Any) -> Any:
    if callable(learning_rate):
        require_function(learning_rate, "learning_rate(count)", "a positive number or a schedule")
        return returning_arrays("learning_rate", learning_rate)
    is_real = isinstance(learning_rate, jax.Array) and jnp.isrealobj(learning_rate)
    is_key = is_real and jnp.issubdtype(learning_rate.dtype, jax.dtypes.prng_key)
    if is_key or not (is_real or _is_real(learning_rate)):
        raise TypeError(
            f"learning_rate is {learning_rate!r}; it must be a positive number or a schedule."
        )
    if isinstance(learning_rate, jax.Array):
        return learning_rate
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; it must be positive to descend.")
    if learning_rate == jnp.inf:
        raise ValueError(f"learning_rate is {learning_rate}; it must be finite.")
    return narrow(learning_rate)

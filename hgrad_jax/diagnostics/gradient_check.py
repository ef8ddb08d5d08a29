"""`check_hypergradient` and `check_gradient`: derivatives against differences of the function.

Everything runs in float64. The differences are of eighth order and estimate their own error
(`differences`); where none is certain enough, the report says "unreliable" and not "WRONG". What is
compared is in `gradient_entries`, the report in `gradient_report`.

How far rounding to the inputs' own precision, float32 say, moves a hypergradient is estimated
beside it (`rounding`). Not done: second derivatives.
"""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.check import HypergradientError, check
from hgrad_jax.diagnostics.gradient_entries import compared
from hgrad_jax.diagnostics.gradient_report import GradientReport
from hgrad_jax.diagnostics.rounding import rounding_errors
from hgrad_jax.hypergradient import Objective, value_and_hypergradient
from hgrad_jax.inputs.arguments import positive
from hgrad_jax.inputs.functions import require_function, traced
from hgrad_jax.run import Run, require_run
from hgrad_jax.runs import validate
from hgrad_jax.tools.trees import is_like, shown
from hgrad_jax.types import Array, Data, Hparams, Params
from hgrad_jax.unroll import unroll


def check_hypergradient(
    objective: Objective,
    run: Run,
    params: Params,
    hparams: Hparams,
    data: Data,
    outer_data: Data = None,
    *,
    key: Array | None = None,
    num_samples: int = 4,
    step: float = 1e-2,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> GradientReport:
    """Returns how an adjoint's hypergradient compares with differences of the training itself.

    All floating-point inputs are cast to float64, so the training differs from the one in float32.
    What the functions themselves cast to less stays so: differences of it are coarse, and the
    report says which are "unreliable".
    Costs 9 runs of it per number, side by side, or up to 36 where differences are unreliable: keep
    T and batches small. The rule's gradient is part of the training: if that is wrong, another
    training is differentiated rightly; `check_gradient` checks the loss by itself.

    A derivative can be right and yet be worth little in float32: where a step divides by what may
    be tiny (Adam with a small eps), or where a training is chaotic. `report.rounding` estimates
    what is left, from three more hypergradients with inputs changed by their dtypes' rounding.

    Args:
      objective: as `value_and_hypergradient`, as are all arguments not explained here.
      run: what the training is, with the adjoint that is checked.
      params: initial parameters.
      hparams: hyperparameters.
      data: what batches are made from.
      outer_data: for the objective.
      key: PRNG key.
      num_samples: how many numbers of each leaf of `hparams` and `params`, drawn without
        replacement; all of a leaf that has fewer.
      step: h for numbers of size up to 1, relative for larger ones; the function is evaluated up to
        4 h away. A tenth, a hundredth and a thousandth are tried where that is too far.
      tolerance: the greatest relative error that is not wrong.
      seed: chooses the numbers and the directions.

    Returns:
      The GradientReport; `report.raise_if_wrong()` turns it into an exception.

    Raises:
      ValueError, TypeError: as `value_and_hypergradient`; or a setting is out of its range, or an
        input is traced.

    Warns:
      RuntimeWarning: rounding moves the hypergradient by a leaf by more than 1e-3 of itself.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.momentum(lambda params, hparams, batch, key: jnp.sum(jnp.cosh(params)))
      >>> report = hg.check_hypergradient(
      ...     lambda params, hparams, _: jnp.sum(params**2),
      ...     hg.Run(rule, num_steps=5, adjoint=hg.Checkpointed()),
      ...     jnp.array([1.0, -0.5]),
      ...     {"learning_rate": 0.1, "momentum": 0.9},
      ...     None,
      ... )
      >>> report.raise_if_wrong().worst.relative_error < 1e-9
      True
    """
    require_run(run)
    settings = _settings(num_samples, step, tolerance, seed)
    _require_values((params, hparams, data, outer_data, key))
    direct = dataclasses.replace(run, adjoint=Direct())

    @jax.jit
    def hypergradient(params, hparams, data, outer_data, key):
        found = value_and_hypergradient(objective, run, params, hparams, data, outer_data, key=key)
        bars = {"hparams": found.hparams}
        if found.params is not None:  # which forward mode does not return
            bars["params"] = found.params
        return bars, found.info

    def value(tree, rest):
        held, data, outer_data, key = rest
        params, hparams = (held | tree)["params"], (held | tree)["hparams"]
        end = unroll(direct, params, hparams, data, key=key)
        return objective(end.params, hparams, outer_data)

    with jax.enable_x64(True):
        inputs = params64, hparams64, data64, outer_data64 = (
            _in_float64(validate.floating(params, "params"), "params"),
            _in_float64(validate.floating(hparams, "hparams"), "hparams"),
            _in_float64(data, "data"),
            _in_float64(outer_data, "outer_data"),
        )
    dtypes = jax.tree.map(jnp.result_type, (params, hparams, data, outer_data))
    with jax.enable_x64(True):
        bars, info = hypergradient(*inputs, key)
        tree, held = {"hparams": hparams64}, {"params": params64}
        if "params" in bars:
            tree, held = tree | held, {}
        found = compared(value, tree, bars, (held, data64, outer_data64, key), **settings)
        try:
            check(info)
        except HypergradientError as error:
            return GradientReport(**found._asdict(), trouble=str(error))
        rounding = rounding_errors(
            lambda *inputs: hypergradient(*inputs, key)[0], inputs, dtypes, bars, seed=seed
        )
    if rounding and rounding[0].is_ill_conditioned:
        warnings.warn(
            f"{rounding[0]}; compute it in float64 (jax_enable_x64), or look for what divides by "
            "tiny numbers, as Adam with a small eps does, or for a chaotic training.",
            RuntimeWarning,
            stacklevel=2,
        )
    return GradientReport(**found._asdict(), rounding=rounding)


def check_gradient(
    loss: Callable[..., Array],
    params: Params,
    *args: Any,
    gradient: Callable[..., Params] | None = None,
    num_samples: int = 4,
    step: float = 1e-2,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> GradientReport:
    """Returns how the gradient of a loss in `params` compares with differences of the loss.

    Args:
      loss: `loss(params, *args) -> floating-point scalar`, say with a `custom_vjp` inside.
      params: pytree of floating-point arrays.
      *args: the loss's other arguments, pytrees of arrays; floats are cast to float64.
      gradient: `gradient(params, *args) -> tree like params`, which is checked; None for
        `jax.grad(loss)`.
      num_samples: as `check_hypergradient`, as are all that follow.
      step: h.
      tolerance: the greatest relative error that is not wrong.
      seed: chooses the numbers and the directions.

    Returns:
      The GradientReport.

    Raises:
      ValueError: the loss is not a scalar, the gradient is not like `params`, or a setting is out
        of its range.
      TypeError: an input is no array, or is traced.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def cubes(w):
      ...     return jnp.sum(w**3)
      >>> print(hg.check_gradient(cubes, jnp.array([0.5, 2.0]), gradient=lambda w: 3.03 * w**2))
      derivative by   gradient  reference     +-  error     step
      params[0]         0.7575       0.75  3e-12  1e-02    1e-02  WRONG
      params[1]          12.12         12  1e-12  1e-02    2e-02  WRONG
      params along v  -11.3625     -11.25  2e-13  9e-03  forward  WRONG
      2 entries, 2 wrong, 0 unreliable
    """
    if gradient is not None and not callable(gradient):
        raise TypeError(f"gradient is {gradient!r}; pass a function, or None for jax.grad's.")
    settings = _settings(num_samples, step, tolerance, seed)
    if not callable(loss):
        raise TypeError(f"loss is {loss!r}; pass a function loss(params, *args) -> scalar.")
    required = ", ".join(("params", *(f"arg{i}" for i in range(len(args)))))
    require_function(loss, f"loss({required})", "a function of these that returns a scalar")
    if gradient is not None:
        require_function(gradient, f"gradient({required})", "a function of these, or None")
    _require_values((params, args))
    with jax.enable_x64(True):
        params = _in_float64(validate.floating(params, "params"), "params")
        args = _in_float64(args, "args")
        with traced("loss"):
            out = jax.eval_shape(loss, params, *args)
        if not isinstance(out, jax.ShapeDtypeStruct) or out.shape or not _is_floating(out.dtype):
            raise ValueError(f"loss returned {out}; it must return one floating-point number.")
        with traced("gradient" if gradient else "loss"):
            bar = jax.jit(gradient or jax.grad(loss))(params, *args)
        if not is_like(bar, params):
            raise ValueError(
                f"gradient returned a tree of shapes {shown(bar)}; params has {shown(params)}, and "
                "its gradient must be alike."
            )
        found = compared(
            lambda tree, args: loss(tree["params"], *args),
            {"params": params},
            {"params": bar},
            args,
            **settings,
        )
    return GradientReport(**found._asdict())


def _in_float64(tree: Any, name: str) -> Any:
    """Returns the tree with its floating-point arrays in float64, the rest as it is."""

    def cast(path, leaf):
        try:
            if isinstance(leaf, str | bytes):  # which numpy takes for the name of a dtype
                raise TypeError
            return jnp.asarray(leaf, jnp.float64) if _is_floating(jnp.result_type(leaf)) else leaf
        except TypeError as error:
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {leaf!r}, not an array; bind it into the "
                "function before."
            ) from error

    return jax.tree_util.tree_map_with_path(cast, tree)


def _is_floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _settings(num_samples: Any, step: Any, tolerance: Any, seed: Any) -> dict[str, Any]:
    """Returns the settings, or raises a ValueError if one is out of its range."""
    for name, setting, least in (("num_samples", num_samples, 1), ("seed", seed, 0)):
        is_int = isinstance(setting, int | np.integer) and not isinstance(setting, bool)
        if not is_int or setting < least:
            raise ValueError(f"{name} is {setting!r}; it must be an int of at least {least}.")
    step, tolerance = positive("step", step), positive("tolerance", tolerance)
    return {"num_samples": num_samples, "step": step, "tolerance": tolerance, "seed": seed}


def _require_values(tree: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise TypeError(
            "a gradient check evaluates the function at many points and cannot run inside jit, "
            "grad or vmap; call it outside."
        )

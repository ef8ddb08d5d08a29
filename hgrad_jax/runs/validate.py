"""Checks of a run's inputs at trace time.

A message is one sentence that names the argument, what it was, and the way out.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import as_int, require_arrays, require_function
from hgrad_jax.inputs.leaves import require_float
from hgrad_jax.inputs.transitions import require_transition
from hgrad_jax.runs.adjoint import Adjoint
from hgrad_jax.runs.first_step import explain, first_step
from hgrad_jax.runs.trajectory import Inputs, Trajectory, inputs
from hgrad_jax.tools.guard import guarded
from hgrad_jax.tools.prefixes import where_no_prefix
from hgrad_jax.types import Data, Hparams, Params, Transition


def floating(tree: Any, name: str) -> Any:
    """Returns the tree with Python numbers made arrays, if it holds floating-point numbers only.

    Raises:
      TypeError: a leaf is not floating point; see `leaves`.
      ValueError: there is no leaf.
    """
    if name == "params" and callable(tree) and len(jax.tree.leaves(tree)) == 1:
        raise TypeError(
            f"params is {tree!r}, a function; tune, meta_step and meta_steps call one for each "
            "run: pass params(key) here."
        )
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves and name == "params":
        raise ValueError(f"{name} is an empty tree; there is nothing to train.")
    for path, leaf in leaves:
        require_float(leaf, name + jax.tree_util.keystr(path))
    return jax.tree.map(jnp.asarray, tree)


def schedules(hparams: Hparams, hparams_axes: Any, num_steps: Any) -> tuple[bool, ...]:
    """Returns for each leaf of the hyperparameters whether it is a schedule.

    Raises:
      TypeError: `num_steps` is not a Python int.
      ValueError: `num_steps` is not positive, `hparams_axes` is no prefix or has other values than
        0 and None, or a schedule has the wrong length.
    """
    (num_steps,) = taken(num_steps=num_steps)
    try:
        axes = jax.tree.map(
            lambda axis, sub: jax.tree.map(lambda _: "constant" if axis is None else axis, sub),
            hparams_axes,
            hparams,
            is_leaf=lambda x: x is None,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"hparams_axes {hparams_axes!r} is not a tree prefix of hparams: "
            f"{where_no_prefix(hparams_axes, hparams, 'hparams')}; give 0 (a schedule) or None (a "
            "constant) for each entry, in the same containers, or for the whole."
        ) from error
    result = []
    for (path, leaf), axis in zip(
        jax.tree_util.tree_leaves_with_path(hparams), jax.tree.leaves(axes), strict=True
    ):
        where = "hparams" + jax.tree_util.keystr(path)
        is_constant = isinstance(axis, str) and axis == "constant"
        if not is_constant and as_int(axis) != 0:
            raise ValueError(
                f"hparams_axes has {axis!r} for {where}; only 0 (a schedule) and None (a constant) "
                "exist."
            )
        is_schedule = not is_constant
        shape = jnp.shape(leaf)
        if is_schedule and (not shape or shape[0] != num_steps):
            raise ValueError(
                f"{where} is a schedule of shape {shape}, but num_steps is {num_steps}; its "
                "leading axis must be the step, or its entry of hparams_axes None."
            )
        result.append(is_schedule)
    return tuple(result)


def run_functions(batch_fn: Any, record: Any) -> None:
    """Raises if what makes batches or the trace is of the wrong kind.

    Raises:
      TypeError: `batch_fn` or `record` is no function of its arguments.
    """
    if batch_fn is not None:
        require_function(
            batch_fn, "batch_fn(data, t, key)", "hgrad_jax.data.minibatches(batch_size), say"
        )
    if record is not None:
        require_function(record, "record(state, data)", "a function, or None for no trace")


def adjoint_serves(adjoint: Any, transition: Transition) -> None:
    """Raises if the adjoint cannot differentiate the transition.

    Raises:
      TypeError: `adjoint` is none, or `transition` is none.
      ValueError: `Reversible()` with a rule that has no exact map.
    """
    require_transition(transition)
    if not isinstance(adjoint, Adjoint):
        raise TypeError(
            f"adjoint is {adjoint!r}; it must be an object such as Direct() or Reversible()."
        )
    adjoint.require(transition)


def step(trajectory: Trajectory, params: Params, given: Inputs) -> None:
    """Traces one step, so that what loss, rule or batches raise comes before any compute.

    Raises:
      ValueError: the state changes its structure, a shape or a dtype; `record` returns something
        other than floats.
    """
    try:
        state, after, trace = first_step(trajectory, params, given)
    except Exception as error:
        explain(error, trajectory, params, given)
        raise
    if jax.tree.structure(after) != jax.tree.structure(state):
        raise ValueError(
            f"transition.step returned a state of structure {jax.tree.structure(after)}, but "
            f"transition.init made {jax.tree.structure(state)}; both must be the same."
        )
    for (path, new), old in zip(
        jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(state), strict=True
    ):
        if new.shape != jnp.shape(old) or new.dtype != jnp.result_type(old):
            raise ValueError(
                f"transition.step changes state{jax.tree_util.keystr(path)} from "
                f"{jnp.result_type(old)}{jnp.shape(old)} to {new.dtype}{new.shape}; a step must "
                "keep shapes and dtypes."
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(trace):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"record returned {leaf.dtype} at {jax.tree_util.keystr(path) or 'its root'}; the "
                "trace is differentiable, so it must be floats: convert with astype(float)."
            )


def no_forgotten_schedule(
    trajectory: Trajectory, params: Params, hparams: Hparams, given: Inputs
) -> None:
    """Raises where a constant has a row for every step and would serve as a schedule just as well.

    Whether it would is found by tracing a step with one row of it. Hyperparameters that are one
    bare array are let through: None for the whole is all that can be said of them.

    Raises:
      ValueError: it would.
    """
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(hparams)):
        if not path or trajectory.num_steps == 1 or jnp.shape(leaf)[:1] != (trajectory.num_steps,):
            continue
        is_schedule = tuple(j == i or is_s for j, is_s in enumerate(trajectory.is_schedule))
        other = trajectory._replace(is_schedule=is_schedule)
        try:
            step(other, params, inputs(other, hparams, given.data, given.key))
        except Exception:  # whatever a function of the user raises, it does not serve
            continue
        raise ValueError(
            f"hparams{jax.tree_util.keystr(path)} of shape {jnp.shape(leaf)} has a row for each of "
            f"the {trajectory.num_steps} steps and would serve as a schedule; say which it is in "
            "hparams_axes, in the same containers as hparams: 0 for a schedule, None for a "
            "constant."
        )


def arrays(**trees: Data) -> tuple[Data, ...]:
    """Returns the trees in the order given.

    Raises:
      TypeError: one holds something other than arrays; the message names it.
    """
    for name, tree in trees.items():
        require_arrays(tree, name)
    return tuple(trees.values())


def not_differentiated(data: Data) -> Data:
    """Returns the data, and raises when something differentiates through it.

    Raises:
      TypeError: they hold something other than arrays.
      ValueError: they are differentiated, in reverse or forward mode.
    """
    require_arrays(data, "data")
    return guarded(
        data,
        "data is being differentiated, but hypergradients are taken of params and hparams only; to "
        "learn the data, put them into hparams and let the loss read them there.",
    )

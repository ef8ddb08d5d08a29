"""Forward mode: the tangents of the whole state are carried along the training."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.inputs.functions import is_number
from hgrad_jax.runs.adjoint import Adjoint, Pullback, Run, Work
from hgrad_jax.runs.closures import opened
from hgrad_jax.runs.trajectory import (
    Inputs,
    Trajectory,
    all_finite,
    first_state,
    float_run_info,
    float_step,
    recorded,
    steps,
)
from hgrad_jax.tools.guard import is_float
from hgrad_jax.tools.liveness import live_bytes
from hgrad_jax.types import Array, BackwardInfo, Params

SymbolicZero = jax.custom_derivatives.SymbolicZero


@dataclasses.dataclass(frozen=True)
class ForwardMode(Adjoint):
    """Carries one tangent of the state for each differentiated number along the training.

    Forward-HG of Franceschi, Donini, Frasconi and Pontil (2017): with Z_t = ds_t/dlambda,
    Z_{t+1} = A_t Z_t + B_t, and the hypergradient is Z_T^T grad E. Exact up to rounding, for every
    transition, further derivatives included. Memory for a state per number, whatever T is (the
    trace of `record`, if there is one, has tangents of its own, `[T]` each); time for about one
    step per number and step. For a few hyperparameters, then, and long runs. Not for schedules,
    each step of which is a number, nor for initial parameters: `vjp` and `value_and_hypergradient`
    return None for their cotangent.

    A derivative that is infinite makes the others NaN, which reverse mode keeps apart: the tangents
    that are zero are numbers here.

    Where the tangents of all numbers take more than `memory`, they are carried in groups, each of
    which repeats the training. Inside `jax.jvp` every number that has a tangent is carried,
    although one direction is asked for: there `Direct()` is cheaper.

    Attributes:
      memory: about how many bytes tangents may take at once, beyond a training step's own, in each
        run of a `vmap`; `math.inf` for no bound.

    Raises:
      ValueError: `memory` is not positive; when it is traced, not even one tangent fits.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return params**2 / 2
      >>> rule = hg.sgd(loss, learning_rate=lambda hparams: hparams)
      >>> run = hg.Run(rule, num_steps=3, adjoint=hg.ForwardMode())
      >>> def end(rate):
      ...     return hg.unroll(run, jnp.float32(1), rate, None).params
      >>> print(jax.grad(end)(0.5))  # d(1 - rate)**3
      -0.75
    """

    memory: float = 2**31

    def __post_init__(self) -> None:
        if not is_number(self.memory) or not self.memory > 0:
            raise ValueError(f"memory is {self.memory!r}; it must be a positive number of bytes.")

    def run(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> Run:
        """Returns the last state, the info, and the trace `[T]`."""

        @jax.custom_jvp
        def unrolled(params, inputs):
            return Direct().run(opened(trajectory, inputs), params, inputs)

        def push(primals, tangents):
            return self._push(trajectory, primals, tangents)

        unrolled.defjvp(push, symbolic_zeros=True)
        return unrolled(params, inputs)

    def work(self, num_steps: int, num_hparams: int) -> Work:
        """Returns a gradient per step, and a product per number and step.

        That is with all tangents carried at once. In groups, whose number `memory` and the size of
        a step decide, each group repeats the gradients.
        """
        return Work(True, num_steps, num_hparams * num_steps)

    def vjp(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> tuple[Run, Pullback]:
        """Returns what `run` returns, and its pullback, which gives None for the parameters."""

        def run(constants, schedules):
            given = inputs._replace(constants=constants, schedules=schedules)
            end, info, trace = self.run(trajectory, params, given)
            return (end, trace), info

        (end, trace), pull, info = jax.vjp(run, inputs.constants, inputs.schedules, has_aux=True)

        def pullback(state_bar, trace_bar):
            constants_bar, schedules_bar = bars = pull((state_bar, trace_bar))
            found = BackwardInfo(info, None, all_finite(bars))
            return None, Inputs(constants_bar, schedules_bar, None, None), found

        return (end, info, trace), pullback

    def _push(self, trajectory: Trajectory, primals: Any, tangents: Any) -> tuple[Run, Run]:
        """Returns the run, and its tangent: the Jacobian times the given tangents.

        Only that product depends on the tangents. So reverse mode transposes nothing but the
        product, and the Jacobian comes by forward mode still.
        """
        leaves, treedef = jax.tree.flatten(primals)
        dots = jax.tree.leaves(tangents)
        which = [i for i, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]
        numbers = [jnp.asarray(leaves[i]) for i in which]  # closed-over ones may be of Python
        weights = _ravel([dots[i] for i in which])

        def run(numbers):
            filled = list(leaves)
            for i, x in zip(which, numbers, strict=True):
                filled[i] = x
            out = _run(trajectory, *jax.tree.unflatten(treedef, filled))
            return [x for x in jax.tree.leaves(out) if is_float(x)], out

        def column(i):
            return jax.jvp(run, (numbers,), (_unit(i, numbers),), has_aux=True)

        size = weights.size
        at_once = min(size, self._tangents_at_once(trajectory, primals, size))
        if at_once == size:
            _, jacobian, out = jax.vmap(column, out_axes=(None, 0, None))(jnp.arange(size))
            return out, _fill(out, _contract(weights, jacobian))

        # The columns of a group are not kept for reverse mode, but computed when they are needed.
        @jax.checkpoint
        def add_group(total, first_and_weights):
            first, weights = first_and_weights
            columns = jax.vmap(lambda i: column(i)[1])(first + jnp.arange(at_once))
            return jax.tree.map(jnp.add, total, _contract(weights, columns)), None

        floats, out = run(numbers)
        num_groups = -(-size // at_once)
        padded = jnp.pad(weights, (0, num_groups * at_once - size))
        groups = (jnp.arange(num_groups) * at_once, padded.reshape(num_groups, at_once))
        total, _ = jax.lax.scan(add_group, jax.tree.map(jnp.zeros_like, floats), groups)
        return out, _fill(out, total)

    def _tangents_at_once(
        self, trajectory: Trajectory, primals: tuple[Params, Inputs], size: int
    ) -> int:
        """Returns how many tangents fit the memory, as the size of a step's live values tells.

        Args:
          trajectory: the run.
          primals: initial parameters and inputs.
          size: how many numbers are differentiated.

        Raises:
          ValueError: not even one does.
        """

        def step(state, params, inputs):
            del params
            run = opened(trajectory, inputs)
            slices = jax.tree.map(lambda x: x[0], inputs.schedules)
            constants, data, key = inputs.constants, inputs.data, inputs.key
            return float_step(run, state, constants, slices, data, key, jnp.int32(0))

        def start(params, inputs):
            return first_state(opened(trajectory, inputs), params, inputs)

        params, inputs = primals
        state = jax.eval_shape(start, params, inputs)
        own = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if is_float(x))
        # A tangent is as large as what it is a tangent of, and carried twice: in and out. So is the
        # unit vector that it belongs to, beside the scan and in it.
        each = 2 * own + live_bytes(step, state, params, inputs) + 4 * 4 * size
        if self.memory == np.inf:
            return np.iinfo(np.int32).max
        if each > self.memory:
            raise ValueError(
                f"memory is {self.memory:.3g} bytes, but one tangent of this training takes about "
                f"{each:.3g}; give ForwardMode more, or use Checkpointed() or Reversible()."
            )
        return int(min(self.memory // each, np.iinfo(np.int32).max))


def _run(trajectory: Trajectory, params: Params, inputs: Inputs) -> Run:
    """Returns what `Direct` returns, with the constants in the carry of the scan.

    From a scan that it differentiates, JAX moves out what depends on the scan's constants alone.
    Here those are arrays like the tangents, coefficients spread over weights, that every step
    would then read: 3 % of its time and 24 MB, for eight hyperparameters of 328,810 weights.
    """
    trajectory = opened(trajectory, inputs)

    def body(carry, t_and_slices):
        (state, constants), (t, slices) = carry, t_and_slices
        state = float_step(trajectory, state, constants, slices, inputs.data, inputs.key, t)
        constants = jax.lax.optimization_barrier(constants)  # else JAX sees that they are constants
        return (state, constants), recorded(trajectory, state, inputs.data)

    start = (first_state(trajectory, params, inputs), inputs.constants)
    (state, _), trace = jax.lax.scan(body, start, (steps(trajectory), inputs.schedules))
    return state, float_run_info(trajectory, state), trace


def _ravel(leaves: Sequence[Array]) -> Array:
    return jnp.concatenate([jnp.ravel(x) for x in leaves])


def _unit(i: Array, numbers: Sequence[Array]) -> list[Array]:
    """Returns the i-th unit vector, in the shapes of `numbers`; zero beyond their end."""
    ends = np.cumsum([0] + [x.size for x in numbers])
    return [
        (jnp.arange(start, start + x.size) == i).reshape(x.shape).astype(x.dtype)
        for start, x in zip(ends[:-1], numbers, strict=True)
    ]


def _contract(weights: Array, columns: list[Array]) -> list[Array]:
    """Returns the columns `[C, *shape]` of each output, summed with weights `[C]`."""

    def sum_up(x):
        # Not a matrix product: reverse mode makes of it sums over all numbers of the state, which
        # XLA adds up in a tree. Ten times as exact in float32.
        return jnp.sum(weights.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1)) * x, 0)

    return [sum_up(x) for x in columns]


def _fill(out: Run, floats: Sequence[Array]) -> Run:
    """Returns the tangents of an output: those of its floats, and none of the rest."""
    leaves, treedef = jax.tree.flatten(out)
    given = iter(floats)
    dots = [next(given) if is_float(x) else np.zeros(x.shape, jax.dtypes.float0) for x in leaves]
    return jax.tree.unflatten(treedef, dots)

"""Reverse mode with checkpoints: some states are stored, the others are computed again."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import as_int
from hgrad_jax.runs.adjoint import Adjoint, Run, Work
from hgrad_jax.runs.trajectory import (
    Inputs,
    Trajectory,
    first_state,
    float_run_info,
    float_step,
    recorded,
)
from hgrad_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Checkpointed(Adjoint):
    """Splits the run into segments, stores the state before each, and recomputes inside.

    Griewank and Walther (2000). With `branching=None` there are two levels, sqrt(T) segments of
    sqrt(T) steps: memory for sqrt(T) states and for what the backward pass of sqrt(T) steps needs,
    and one extra run forward. With `branching=k` segments are split in k again and again, down to
    single steps: memory for k * log_k(T) states and the backward pass of one step, and log_k(T)
    extra runs forward; `branching=2` uses the least memory. Exact up to rounding, for every
    transition. Loses to `Reversible()` in memory where that applies, and in time by the runs
    forward.

    Attributes:
      branching: None for two levels, or how many parts a segment is split in, at least 2.

    Raises:
      ValueError: `branching` is below 2, or no int.
    """

    branching: int | None = None

    def __post_init__(self) -> None:
        is_int = as_int(self.branching) is not None
        if self.branching is not None and (not is_int or self.branching < 2):
            raise ValueError(
                f"branching is {self.branching!r}; it must be an int of at least 2, or None for "
                "two levels."
            )

    def levels(self, num_steps: int) -> tuple[int, ...]:
        """Returns the parts at each level, outermost first; their product is at least `num_steps`.

        >>> Checkpointed().levels(10_000)
        (100, 100)
        >>> Checkpointed(branching=2).levels(1_000)
        (2, 2, 2, 2, 2, 2, 2, 2, 2, 2)
        """
        if self.branching is None:
            inner = math.isqrt(num_steps - 1) + 1
            return (-(-num_steps // inner), inner)
        branching = min(self.branching, max(num_steps, 2))
        depth = 1
        while branching**depth < num_steps:
            depth += 1
        return (branching,) * depth

    def run(self, trajectory: Trajectory, params: Params, inputs: Inputs) -> Run:
        """Returns the last state, the info, and the trace `[T]`."""
        num_steps = trajectory.num_steps
        levels = self.levels(num_steps)
        is_padded = math.prod(levels) > num_steps

        def folded(x):
            padding = [(0, math.prod(levels) - num_steps)] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x, padding).reshape(levels + x.shape[1:])

        def step(state, t, slices):
            return float_step(
                trajectory, state, inputs.constants, slices, inputs.data, inputs.key, t
            )

        def body(state, t_and_slices):
            t, slices = t_and_slices
            if is_padded:
                state = jax.lax.cond(
                    t < num_steps, step, lambda state, t, slices: state, state, t, slices
                )
            else:
                state = step(state, t, slices)
            return state, recorded(trajectory, state, inputs.data)

        if self.branching is not None:
            body = jax.checkpoint(body, prevent_cse=False)
        for _ in levels[1:]:
            body = jax.checkpoint(functools.partial(jax.lax.scan, body), prevent_cse=False)
        # The steps beyond T, where the levels hold more, count on and do nothing.
        t = jnp.arange(math.prod(levels), dtype=jnp.int32).reshape(levels)
        state = first_state(trajectory, params, inputs)
        state, trace = jax.lax.scan(body, state, (t, jax.tree.map(folded, inputs.schedules)))
        trace = jax.tree.map(lambda x: x.reshape((-1, *x.shape[len(levels) :]))[:num_steps], trace)
        return state, float_run_info(trajectory, state), trace

    def work(self, num_steps: int, num_hparams: int) -> Work:
        """Returns a product per step, and a gradient per step and run forward.

        >>> Checkpointed(branching=2).work(1000, 3)
        Work(is_exact=True, gradients=11000, products=1000)
        """
        del num_hparams
        # Every level repeats the run once, but for the inner one of two.
        again = len(self.levels(num_steps)) - (self.branching is None)
        return Work(True, (1 + again) * num_steps, num_steps)

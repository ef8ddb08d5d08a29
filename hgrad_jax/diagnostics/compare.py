"""`compare`: several adjoints on one problem, each measured against a reference."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.check import HypergradientError, check
from hgrad_jax.diagnostics.comparison import Comparison, Row
from hgrad_jax.hypergradient import Objective, value_and_hypergradient
from hgrad_jax.inputs.arguments import prng_key
from hgrad_jax.inputs.functions import INT32_END, as_int
from hgrad_jax.run import Run, require_run
from hgrad_jax.runs import validate
from hgrad_jax.runs.adjoint import Adjoint
from hgrad_jax.show.text_table import name_of
from hgrad_jax.types import Array, Data, Hparams, Params


@jax.disable_jit(False)  # which is for what is called: this compiles ahead
def compare(
    objective: Objective,
    run: Run,
    params: Params,
    hparams: Hparams,
    data: Data,
    outer_data: Data = None,
    *,
    adjoints: Sequence[Adjoint] | Mapping[str, Adjoint],
    reference: Adjoint | None = None,
    key: Array | None = None,
    repeats: int = 1,
) -> Comparison:
    """Returns each adjoint's hypergradient measured against a reference's, and its cost.

    Compiles one program per adjoint and runs it 1 + `repeats` times. An adjoint that cannot serve
    the problem has a row that says why. An approximation that looks good on one problem, or at one
    T, need not on another.

    Args:
      objective: as `value_and_hypergradient`.
      run: as `unroll`; `adjoints` are taken in place of its own.
      params: as `unroll`.
      hparams: as `unroll`; the hypergradient is compared over all of it.
      data: as `unroll`.
      outer_data: as `value_and_hypergradient`.
      adjoints: what to compare; a mapping gives them names.
      reference: what to compare with, an exact adjoint as a rule; None for the first one.
      key: as `unroll`.
      repeats: how many timed runs after a first one, whose time counts if there are none; of
        several the fastest.

    Raises:
      ValueError: there are no adjoints, `repeats` is below 0, or the reference has no finite
        hypergradient.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.sum(jnp.cosh(params - hparams))
      >>> found = hg.compare(
      ...     lambda params, hparams, target: jnp.sum((params - target) ** 2),
      ...     hg.Run(hg.momentum(loss, learning_rate=0.1, momentum=0.9), num_steps=50),
      ...     jnp.zeros(3), jnp.arange(3.0), None, jnp.ones(3),
      ...     adjoints=[hg.Direct(), hg.Reversible(), hg.Truncated(5)],
      ... )
      >>> [round(row.cosine, 3) for row in found.rows]
      [1.0, 1.0, 0.998]
    """
    require_run(run)
    if isinstance(adjoints, Adjoint):
        raise TypeError(f"adjoints is {adjoints!r}; put it into a list.")
    if not isinstance(adjoints, Sequence | Mapping) or isinstance(adjoints, str | bytes):
        raise TypeError(f"adjoints is {adjoints!r}; give a list, such as [hg.Reversible()].")
    if not isinstance(reference, Adjoint | None):
        raise TypeError(f"reference is {reference!r}; it must be an adjoint, such as Direct().")
    if not adjoints:
        raise ValueError("adjoints is empty; give at least one, such as [hg.Reversible()].")
    if as_int(repeats) is None or not 0 <= repeats < INT32_END:
        raise ValueError(f"repeats is {repeats!r}; it must be an int of at least 0, below 2**31.")
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((params, hparams, data, outer_data))):
        raise TypeError("compare measures programs and cannot run inside jit, grad or vmap.")
    named = (
        dict(adjoints)
        if isinstance(adjoints, Mapping)
        else dict(zip(_apart(list(map(name_of, adjoints))), adjoints, strict=True))
    )
    for name, adjoint in named.items():
        if not isinstance(adjoint, Adjoint):
            raise TypeError(
                f"adjoints has {adjoint!r} for {name}; write it with parentheses, as in Direct()."
            )
    if reference is not None:
        first = {name: a for name, a in named.items() if a == reference}
        if not first:
            name = name_of(reference)
            first = {f"{name} (reference)" if name in named else name: reference}
        named = first | named

    def program_of(adjoint):
        def program(params, hparams, data, outer_data, key):
            found = value_and_hypergradient(
                objective,
                dataclasses.replace(run, adjoint=adjoint),
                params,
                hparams,
                data,
                outer_data,
                key=key,
            )
            return found.value, found.hparams, found.info

        return program

    args = (
        validate.floating(params, "params"),
        validate.floating(hparams, "hparams"),
        *validate.arrays(data=data, outer_data=outer_data),
        prng_key("key", key),
    )
    # What is wrong with the problem itself is raised here; what an adjoint cannot do, below, noted.
    jax.eval_shape(program_of(Direct()), *args)
    if not jax.tree.leaves(hparams):
        raise ValueError("hparams is an empty tree; there is no hypergradient to compare.")
    measured = {name: _measure(program_of(a), args, repeats) for name, a in named.items()}
    first, want = next(iter(measured)), next(iter(measured.values()))[1]
    if want is None or not np.isfinite(want).all():
        raise ValueError(
            f"the reference {first} has no finite hypergradient ({measured[first][0].problem}); "
            "pass another as reference=."
        )
    rows = [_compared(row._replace(name=name), h, want) for name, (row, h) in measured.items()]
    return Comparison(tuple(rows), want.size, run.num_steps)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the cosine of the angle between two vectors, NaN where one of them has no direction.

    >>> round(cosine(np.array([1e150, 0.0]), np.array([3.0, 4.0])), 12)
    0.6
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        # Divided first: norms of what exploded overflow when they are multiplied.
        return float((a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)))


def _apart(names: list[str]) -> list[str]:
    """Returns the names, with a number behind those that occur before.

    >>> _apart(["Implicit()", "Direct()", "Implicit()"])
    ['Implicit()', 'Direct()', 'Implicit() (2)']
    """
    counts = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return [name if n == 1 else f"{name} ({n})" for name, n in zip(names, counts, strict=True)]


def _measure(program: Any, args: tuple, repeats: int) -> tuple[Row, np.ndarray | None]:
    """Returns a row without comparisons, and the hypergradient as one vector."""
    nothing = Row("", *[None] * 8)
    try:
        compiled = jax.jit(program).lower(*args).compile()
        (value, h, info), first = _timed(compiled, args)
    except (ValueError, TypeError, RuntimeError) as error:  # the last where memory does not suffice
        return nothing._replace(problem=str(error).splitlines()[0]), None
    memory = compiled.memory_analysis()
    seconds = [_timed(compiled, args)[1] for _ in range(repeats)] or [first]
    problem = None
    try:
        check(info)
    except HypergradientError as error:
        problem = str(error)
    row = nothing._replace(
        value=float(value),
        seconds=min(seconds),
        temp_bytes=None if memory is None else memory.temp_size_in_bytes,
        problem=problem,
    )
    flat = [np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(h)]
    return row, np.concatenate(flat)


def _timed(compiled: Any, args: tuple) -> tuple[Any, float]:
    """Returns what a program returns, and its seconds."""
    begun = time.perf_counter()
    found = jax.block_until_ready(compiled(*args))
    return found, time.perf_counter() - begun


def _compared(row: Row, h: np.ndarray | None, want: np.ndarray) -> Row:
    if h is None:
        return row
    if not want.any():
        problem = row.problem or "the reference is zero, which has no direction"
        return row._replace(norm=float(np.linalg.norm(h)), problem=problem)
    return row._replace(
        norm=float(np.linalg.norm(h)),
        cosine=cosine(h, want),
        sign_cosine=cosine(np.sign(h), np.sign(want)),
        relative_error=float(np.linalg.norm(h - want) / np.linalg.norm(want)),
    )

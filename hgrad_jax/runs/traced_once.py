"""A user's functions traced once: every pass of a run evaluates the same program.

The way back calls a loss again, and what a call does in Python (a random number of numpy's, a
counter) would be done again, to another result. So a function is traced at its first call with
arguments of given shapes, and from then on it is the jaxpr of that trace that is evaluated, on the
way forward and on the way back, with one set of constants.

The jaxpr also says which traced values the function closes over. Adjoints with a derivative rule of
their own hand those to the rule, as JAX asks of what a rule reads; see `hgrad_jax.runs.closures`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from hgrad_jax.rules.form import KickDrift
from hgrad_jax.rules.gradients import backpropagation
from hgrad_jax.rules.stepping import ExactStep, from_exact
from hgrad_jax.runs.trajectory import Extended, Trajectory
from hgrad_jax.types import Transition


class Program(NamedTuple):
    """A function as it was traced.

    Attributes:
      jaxpr: from the arguments' arrays to the arrays of what it returned.
      places: for each constant of the jaxpr, which of the values closed over it is, or None.
      leaves: what it returned, leaf by leaf; None in the places of arrays.
      is_array: which leaves those are.
      treedef: structure of what it returned.
    """

    jaxpr: ClosedJaxpr
    places: tuple[int | None, ...]
    leaves: tuple[Any, ...]
    is_array: tuple[bool, ...]
    treedef: Any


class TracedOnce:
    """A function that is traced once for arguments of the same shapes, dtypes and structure.

    Numbers and other leaves of Python stay what they are, in its arguments and in its result.

    Attributes:
      function: pure, from pytrees to a pytree.
      closed: the traced values that it and the other functions of the run close over; it appends
        those it meets.
      values: what is to stand in their places, None where they stand themselves.
    """

    def __init__(self, function: Callable[..., Any], closed: list[Any]) -> None:
        self.function = function
        self.closed = closed
        self.values: tuple[Any, ...] = ()
        self._programs: dict[Any, Program] = {}

    def bound(self, values: tuple[Any, ...]) -> "TracedOnce":
        """Returns the function with values in the places of those it closes over."""
        other = TracedOnce(self.function, self.closed)
        other.values, other._programs = values, self._programs
        return other

    def extended(self, hparams: Extended) -> "TracedOnce":
        """Returns the function with the values that come with the hyperparameters, too."""
        values = self.values + (None,) * (len(hparams.closed) - len(self.values))
        pairs = zip(values, hparams.closed, strict=True)
        return self.bound(tuple(old if new is None else new for old, new in pairs))

    def closes_over(self) -> set[int]:
        """Returns which of the closed-over values it has met."""
        programs = self._programs.values()
        return {i for program in programs for i in program.places if i is not None}

    def __call__(self, *args: Any) -> Any:
        """Evaluates the program; `Extended` hyperparameters bring values that it closes over."""
        for arg in args:
            if isinstance(arg, Extended):
                given = tuple(x.hparams if x is arg else x for x in args)
                return self.extended(arg)(*given)
        values = self.values
        leaves, treedef = jax.tree.flatten(args)
        program = self._program(leaves, treedef)
        constants = [
            constant if i is None or i >= len(values) or values[i] is None else values[i]
            for constant, i in zip(program.jaxpr.consts, program.places, strict=True)
        ]
        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        found = iter(jaxpr_as_fun(ClosedJaxpr(program.jaxpr.jaxpr, constants))(*arrays))
        filled = [
            next(found) if is_array else leaf
            for leaf, is_array in zip(program.leaves, program.is_array, strict=True)
        ]
        return jax.tree.unflatten(program.treedef, filled)

    def _program(self, leaves: list[Any], treedef: Any) -> Program:
        signature = (treedef, *map(_signature, leaves))
        if signature not in self._programs:
            self._programs[signature] = self._trace(leaves, treedef)
        return self._programs[signature]

    def _trace(self, leaves: list[Any], treedef: Any) -> Program:
        returned = []

        # A function of this call: JAX keeps traces by function, and a user's may depend on what
        # has changed since the last run.
        def of_arrays(*arrays):
            given = iter(arrays)
            filled = [next(given) if _is_array(leaf) else leaf for leaf in leaves]
            out = self.function(*jax.tree.unflatten(treedef, filled))
            found, out_treedef = jax.tree.flatten(out)
            is_array = tuple(map(_is_array, found))
            kept = tuple(None if a else x for x, a in zip(found, is_array, strict=True))
            returned.append((kept, is_array, out_treedef))
            return [x for x, a in zip(found, is_array, strict=True) if a]

        jaxpr = jax.make_jaxpr(of_arrays)(*(leaf for leaf in leaves if _is_array(leaf)))
        return Program(jaxpr, tuple(map(self._place, jaxpr.consts)), *returned[-1])

    def _place(self, constant: Any) -> int | None:
        """Returns which of the values closed over a constant is, and None if it is not traced."""
        if not isinstance(constant, Tracer):
            return None
        for i, known in enumerate(self.closed):
            if known is constant:
                return i
        self.closed.append(constant)
        return len(self.closed) - 1


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _signature(leaf: Any) -> Any:
    if _is_array(leaf):
        # Whether a type is weak decides how a function promotes it, which is decided by then.
        return jax.typeof(leaf).strip_weak_type()
    try:
        hash(leaf)
    except TypeError:
        return _Itself(leaf)
    return type(leaf), leaf, repr(leaf) if isinstance(leaf, float) else None  # 0.0 is not -0.0


class _Itself:
    """An object that cannot be hashed, equal to itself alone; kept, lest another have its id."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def trace_once(trajectory: Trajectory) -> Trajectory:
    """Returns the trajectory with all its functions traced once."""
    closed: list[Any] = []

    def keep(function: Any) -> Any:
        return None if function is None else TracedOnce(function, closed)

    return trajectory._replace(
        transition=_kept(trajectory.transition, keep),
        batch_fn=keep(trajectory.batch_fn),
        record=keep(trajectory.record),
        closed=closed,
        keep=keep,
    )


def _kept(transition: Transition, keep: Callable[[Any], Any]) -> Transition:
    """Returns the transition of functions traced once, each of those that others call, too.

    The gradient is made anew of the loss that is kept, and the step of the kept gradient: all see
    one trace of what the user wrote.
    """
    exact = transition.exact
    init, params, step = keep(transition.init), keep(transition.params), transition.step
    if isinstance(exact, KickDrift):
        loss = keep(exact.loss)
        gradient = exact.gradient if loss is None else backpropagation(loss)
        names = ("kick", "couple", "drift", "trail", "decays")
        pieces = {name: keep(getattr(exact, name)) for name in names}
        kept = exact._replace(loss=loss, gradient=keep(gradient), **pieces)
        if isinstance(step, ExactStep) and step.exact is exact:
            step = from_exact(kept, init).step
        exact = kept
    return transition._replace(init=init, step=keep(step), params=params, exact=exact)


def bound(trajectory: Trajectory, values: tuple[Any, ...]) -> Trajectory:
    """Returns a trajectory that was traced once, with values in place of those it closes over."""

    def bind(tree: Any) -> Any:
        fields = {
            name: function.bound(values)
            for name, function in tree._asdict().items()
            if isinstance(function, TracedOnce)
        }
        return tree._replace(**fields)

    transition = bind(trajectory.transition)
    if isinstance(transition.exact, KickDrift):
        transition = transition._replace(exact=bind(transition.exact))
    return bind(trajectory._replace(transition=transition))

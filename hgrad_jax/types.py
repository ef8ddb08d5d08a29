"""The nouns that the whole library shares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array

Params = Any
"""What is trained: a pytree of floating-point arrays."""

Hparams = Any
"""What hypergradients are taken of: a pytree of floating-point arrays."""

Batch = Any
"""What `batch_fn` returns, usually a tuple of arrays `[B, ...]`."""

Data = Any
"""What batches are made from: a pytree of arrays, never differentiated."""

State = Any
"""What a transition carries from step to step: a pytree of arrays."""

Loss = Callable[[Params, Hparams, Batch, Any], Array]
"""`loss(params, hparams, batch, key) -> scalar`."""

BatchFn = Callable[[Data, Array, Any], Batch]
"""`batch_fn(data, t, key) -> batch`: pure, by the int32 step, called again on the way back."""


Update = Callable[..., tuple[Params, Any]]
"""`update(params, gradient, slots, hparams, count=0) -> (params, slots)`."""


def _no_update(*args: Any) -> tuple[Params, Any]:
    raise TypeError(
        "this transition has no update for a gradient that is given: its step is all it was made "
        "with; pass update= to Transition."
    )


class Transition(NamedTuple):
    """One elementary update of training, as pure functions.

    Attributes:
      init: `init(params, hparams) -> state`, with the hyperparameters of step 0.
      step: `step(state, hparams, batch, key) -> state`, with the hyperparameters of this step.
      params: `params(state) -> params`, what the trained model is read from.
      exact: the same update as kicks and drifts, with which it can be run backwards bit for bit;
        None where the rule has no such form.
      why_not: where `exact` is None, the reason in a few words, for the error that `Reversible()`
        raises.
      update: `update(params, gradient, slots, hparams, count=0) -> (params, slots)`, the step for a
        gradient that is given: no loss, no batch, no state, and no `gradient=` of the rule, whose
        modifiers do not see it. `slots` are the rule's by name, as in
        its state, or None for those it starts with; `count` is the number of steps taken before,
        which Adam's corrections depend on. A transition that is not of this library has none unless
        it is given one, and says so when it is called.

    Example:
      A single update by hand:

      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> rule = hg.heavy_ball(lambda params, hparams, batch, key: jnp.sum(params**2))
      >>> hparams = {"learning_rate": 0.5, "momentum": 0.75}
      >>> slots = {"velocity": jnp.array([4.0])}
      >>> rule.update(jnp.array([1.0]), jnp.array([2.0]), slots, hparams)
      (Array([-1.5], dtype=float32), {'velocity': Array([5.], dtype=float32)})
    """

    init: Callable[[Params, Hparams], State]
    step: Callable[[State, Hparams, Batch, Array | None], State]
    params: Callable[[State], Params]
    exact: Any = None
    why_not: str = "it was not built by kick_drift"
    update: Update = _no_update


class Slot(NamedTuple):
    """How one variable of a rule is kept as fixed point.

    Attributes:
      fraction_bits: of a 64-bit number; 44 gives a range of +-65,536 and a resolution of 5.7e-14.
        A 128-bit number has twice as many.
      smallest_decay: for the capacity of the bit store: it holds a run whose decays are, in
        geometric mean over the steps, at least this, in (0, 1]. `Reversible(smallest_decay=...)`
        overrides it.
      is_double: whether to use 128 bits in float32 training too (in float64 training, always).
        Second moments need it, since their square root divides: 50 fraction bits, doubled, give
        +-1.7e7 and 7.9e-31.
    """

    fraction_bits: int = 44
    smallest_decay: float = 0.5
    is_double: bool = False


class RunInfo(NamedTuple):
    """What happened on the way forward. Read it with `check`.

    Attributes:
      overflow: bool scalar, a number left the fixed-point range (Reversible only).
      nonfinite: bool scalar, an update was infinite or NaN.
      damaged_at: int32 scalar, the first step at which either happened; num_steps if neither did,
        and -1 with the adjoints other than Reversible, which look at the end only.
      decay_out_of_range: bool scalar, a decay was outside [2**-7, 1] (Reversible only).
      store_overflow: bool scalar, the bit store was too small (Reversible only).
      bits_per_step: float32 scalar per decayed variable: what its bit store grew by, per parameter
        and step.
      entropy_per_step: float32 scalar per decayed variable: the mean of log2(1 / decay), the least
        that any lossless store can grow by.
    """

    overflow: Array
    nonfinite: Array
    damaged_at: Array
    decay_out_of_range: Array
    store_overflow: Array
    bits_per_step: dict[str, Array]
    entropy_per_step: dict[str, Array]


class BackwardInfo(NamedTuple):
    """What happened on the way back. Read it with `check`.

    Attributes:
      run: the RunInfo of the way forward.
      mismatches: int32 scalar, how many numbers of the start were not restored bit for bit; None
        for adjoints that do not run backwards.
      is_finite: bool scalar, every cotangent is finite.
      norms: Euclidean norms of the cotangent of each variable and of the constant hyperparameters
        before each step, float32 `[T]` by name, where the adjoint was asked to trace them; else
        None.
      solve: how well `Implicit()` solved for the hypergradient, an ImplicitInfo; None for the other
        adjoints.
      is_repeated: bool scalar, the way back had to be taken twice, for this run or another of the
        same `vmap` (`Reversible`'s share_gradient); None for adjoints that do not run backwards.
    """

    run: RunInfo
    mismatches: Array | None
    is_finite: Array
    norms: dict[str, Array] | None = None
    solve: Any = None
    is_repeated: Array | None = None

    @property
    def is_restored(self) -> Array:
        """Whether the run backwards ended at the very bits that the run forward started from."""
        if self.mismatches is None:
            raise AttributeError(
                "is_restored: only Reversible() runs backwards; this adjoint restores nothing."
            )
        return self.mismatches == 0


class Unrolled(NamedTuple):
    """The end of a trajectory.

    Attributes:
      params: the trained parameters, as `Transition.params` reads them; NaN if the run was damaged.
      state: the last state.
      info: a RunInfo.
      trace: what `record` returned after each step, leading axis `[T]`; None without `record`.
    """

    params: Params
    state: State
    info: RunInfo
    trace: Any = None

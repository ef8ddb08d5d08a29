"""The adaptive method: every N steps, a hypergradient through the last k of them.

St. Jules (2017), section 3.2.2: per-parameter learning rates and L2 coefficients, on logarithmic
scales, every 100 steps by the last 5 of them, or every 131 by the last 4, against the signs of the
hypergradient. With k = 1 it is T1-T2.

A step of this transition is a *period* of N elementary steps, so that `num_steps` counts periods.
The first N - k are plain training and the last k are differentiated where they stand, in reverse
mode: nothing is kept from step to step for the way back, nothing is computed twice, and no
condition decides anything at run time, so that under `vmap` a period costs what it costs alone. A
transition of one elementary step would have to carry the state k steps ago and the last k batches,
keys and schedules, whose shapes its `init` does not know, and run them again; tangents carried
forward, as `rtho` does, are too many for a rate per parameter. The price: batches come from a batch
function of periods (`periods` makes it), a schedule in hparams has one value a period, and `record`
looks once a period, when the hyperparameters change.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import positive_int
from hgrad_jax.online.batches import Period, folded, split
from hgrad_jax.online.learned import (
    WHY_NOT,
    Bounds,
    Learned,
    MakeTx,
    OnlineState,
    current,
    learner,
    require_rule,
    validation,
)
from hgrad_jax.online.signs import by_sign
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params, State, Transition

LEARNED = ("log_learning_rate", "log10_l2")
STEPS = by_sign({"log_learning_rate": 0.2, "log10_l2": 0.01})
"""The step sizes of the first experiment; those of the second are 0.1 and 0.02."""


def adaptive(
    inner: Transition,
    valid_loss: Loss,
    *,
    every: int = 100,
    window: int = 5,
    learned: Sequence[str] = LEARNED,
    make_tx: MakeTx = STEPS,
    bounds: Bounds | None = None,
    is_restarted: bool = False,
) -> Transition:
    """Trains for `every` steps, then updates hyperparameters by the last `window` of them.

        lambda' = lambda - step * sign(d valid_loss(x_N(lambda), lambda) / dlambda)

    where x_N comes from x_{N - k}, slots included and held fixed, by k steps with lambda. What
    hyperparameters did before the window counts as zero, a bias that `Truncated` tells of. It makes
    learning rates fall too fast, and the report suggests to keep them above a schedule, which is
    then an entry of hparams: `bounds={"log_learning_rate": (hg.field("log_schedule"), 0.0)}`.

    Costs the backward pass of k steps, their memory, and a gradient of the validation loss a
    period, however many hyperparameters there are.

    Args:
      inner: the rule of the elementary steps.
      valid_loss: `valid_loss(params, hparams, batch, key) -> scalar`, of the validation batch.
      every: N, the elementary steps of a period, a positive int.
      window: k, how many of them the hypergradient is taken through, 1 <= k <= N.
      learned: names of the entries of hparams that are learned. What they are is the rule's and the
        loss's affair: `hg.sgd(loss, learning_rate=lambda h: jnp.exp(h["log_learning_rate"]))`, and
        `hg.hyper.l2(params, hg.hyper.log10.to_value(h["log10_l2"]))` in the loss.
      make_tx: `make_tx(hparams) -> optax transformation` of `{name: value}`.
      bounds: `{name: (lower, upper)}`, numbers or functions of hparams, None for no bound: what is
        learned is clipped to them, also at the start. The report's log learning rates stay below
        zero: `{"log_learning_rate": (None, 0.0)}`.
      is_restarted: whether the rule starts anew after each update, from the parameters: momentum is
        reset to zero, and Adam's moments with their count.

    Returns:
      A Transition whose state is an `OnlineState`: `out.state.hparams` is what was learned, and
      `record=lambda state, data: state.hparams` traces it. Its batches are those of `periods`.

    Raises:
      TypeError, ValueError: an argument is not what it should be.

    Example:
      >>> import jax.numpy as jnp, hgrad_jax as hg
      >>> from hgrad_jax.hyper import l2, log10
      >>> def valid_loss(params, hparams, batch, key):
      ...     return jnp.sum((params - batch) ** 2)
      >>> def loss(params, hparams, batch, key):
      ...     penalty = l2(params, log10.to_value(hparams["log10_l2"]))
      ...     return valid_loss(params, hparams, batch, key) + penalty
      >>> def rates(hparams):
      ...     return jnp.exp(hparams["log_learning_rate"])
      >>> inner = hg.heavy_ball(loss, learning_rate=rates, momentum=0.5)
      >>> rule = hg.online.adaptive(inner, valid_loss, every=10, window=3)
      >>> hparams = {"log_learning_rate": jnp.full(2, -5.0), "log10_l2": jnp.full(2, -2.0)}
      >>> data = (jnp.array([1.0, -2.0]), jnp.array([0.5, -3.0]))  # training, validation
      >>> periods, kept = hg.online.periods(every=10), lambda state, data: state.hparams
      >>> run = hg.Run(rule, num_steps=3, batch_fn=periods, record=kept)
      >>> out = hg.unroll(run, jnp.zeros(2), hparams, data)
      >>> out.trace["log_learning_rate"].round(1)  # the first number went too far in the end
      Array([[-4.8, -4.8],
             [-4.6, -4.6],
             [-4.8, -4.4]], dtype=float32)
    """
    require_rule(inner)
    outer = validation(valid_loss)
    meta = learner(learned, make_tx, bounds)
    every = positive_int("every", every)
    (is_restarted,) = taken(is_restarted=is_restarted)
    window = positive_int("window", window)
    if window > every:
        raise ValueError(
            f"window is {window}, but a period has {every} steps; it must be at most every."
        )

    def init(params: Params, hparams: Hparams) -> OnlineState:
        start = meta.start(hparams)
        return OnlineState(
            inner.init(params, current(hparams, start)),
            start,
            meta.init(start, hparams),
            jax.tree.map(jnp.zeros_like, start),
            jnp.int32(0),
        )

    def step(state: OnlineState, hparams: Hparams, batch: Batch, key: Array | None) -> OnlineState:
        train, valid = split(batch)
        period = _period(train, every)

        def run(start: State, learned: Learned, first: int, last: int) -> State:
            def body(at: State, i: Array) -> tuple[State, None]:
                batch, step_key = period.at(i), folded(key, i)
                return inner.step(at, current(hparams, learned), batch, step_key), None

            return jax.lax.scan(body, start, jnp.arange(first, last, dtype=jnp.int32))[0]

        def through_window(learned: Learned) -> tuple[Array, State]:
            end = run(middle, learned, every - window, every)
            valid_key = folded(key, every)
            return outer(inner.params(end), current(hparams, learned), valid, valid_key), end

        middle = run(state.inner, state.hparams, 0, every - window)
        hypergradient, end = jax.grad(through_window, has_aux=True)(state.hparams)
        new, opt_state = meta.update(state.hparams, hypergradient, state.opt_state, hparams)
        if is_restarted:
            end = inner.init(inner.params(end), current(hparams, new))
        return OnlineState(end, new, opt_state, hypergradient, state.count + 1)

    return Transition(init, step, lambda state: inner.params(state.inner), why_not=WHY_NOT)


def _period(train: Any, every: int) -> Period:
    """Returns the training batches, if they are those of a period of this length.

    Raises:
      TypeError: they are not those of a period.
      ValueError: it is of another length.
    """
    if not isinstance(train, Period):
        raise TypeError(
            f"the training batch is a {type(train).__name__}, but a step of adaptive is a period "
            f"of steps; pass batch_fn=hg.online.periods(..., every={every})."
        )
    if train.every != every:
        raise ValueError(
            f"every is {every}, but batches are made for periods of {train.every} steps; give "
            "adaptive and hg.online.periods the same."
        )
    return train

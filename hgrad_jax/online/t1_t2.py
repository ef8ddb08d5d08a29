"""T1-T2: a hypergradient through one step of training (Luketina et al. 2016).

T1 is a step of training, T2 a step of the hyperparameters, by what that one step of training did to
the validation loss. Reverse mode through the step, so that any number of hyperparameters costs
about as much as a second step. `adaptive` looks back over several steps, `rtho` over all.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import positive_int
from hgrad_jax.online.batches import VALID_ROLE, folded, split_step
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
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params, State, Transition


def t1_t2(
    inner: Transition,
    valid_loss: Loss,
    *,
    learned: Sequence[str],
    make_tx: MakeTx,
    every: int = 1,
    bounds: Bounds | None = None,
) -> Transition:
    """Trains, and every `every` steps updates hyperparameters by that one step's hypergradient.

        x' = step(x, lambda)                                                          (T1)
        lambda' = lambda - eta d valid_loss(step(x, lambda), lambda) / dlambda        (T2)

    with x, slots included, held fixed. Luketina, Berglund, Greff and Raiko (2016), with any
    rule for T1 and any optax transformation for T2. They tune L2 coefficients and the noise of
    units, every 10 steps. What a hyperparameter did in earlier steps counts as zero: it is greedy,
    and makes learning rates too small where gradients are noisy (Wu et al. 2018).

    Costs an evaluation of the validation loss, its gradient and the backward pass of a step, each
    time that hyperparameters are updated; in between nothing, also under `vmap` of `unroll`, where
    the number of steps taken is the same for all runs. Where a `vmap` maps the state itself, every
    step costs as much as one with an update.

    Args:
      inner: the rule of T1; it finds its hyperparameters in `hparams`, as always.
      valid_loss: `valid_loss(params, hparams, batch, key) -> scalar`, of the validation batch.
      learned: names of the entries of hparams that are learned, such as `("log10_l2",)`.
      make_tx: `make_tx(hparams) -> optax transformation` of `{name: value}`; `by_sign(...)` makes
        one, `lambda hparams: optax.sgd(hparams["meta_rate"])` is one.
      every: elementary steps between updates, a positive int.
      bounds: `{name: (lower, upper)}`, numbers or functions of hparams, None for no bound: what is
        learned is clipped to them in each update, as they were in the step before it.

    Returns:
      A Transition whose state is an `OnlineState`: `out.state.hparams` is what was learned. Its
      batches are `Batches`: use `paired`.

    Raises:
      TypeError, ValueError: an argument is not what it should be.

    Example:
      >>> import jax.numpy as jnp, optax, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return (params - batch) ** 2 / 2
      >>> settings = {"learned": ("learning_rate",), "make_tx": lambda h: optax.sgd(h["meta"])}
      >>> rule = hg.online.t1_t2(hg.sgd(loss), loss, **settings)
      >>> rates = lambda state, data: state.hparams["learning_rate"]
      >>> run = hg.Run(rule, num_steps=2, batch_fn=hg.online.paired(), record=rates)
      >>> out = hg.unroll(run, jnp.float32(1), {"learning_rate": 0.5, "meta": 0.25}, (0.0, 0.0))
      >>> out.trace  # 1/2 + 1/4 * 1/2; then 5/8 + 1/4 * 3/16 * 1/2
      Array([0.625    , 0.6484375], dtype=float32)
    """
    require_rule(inner)
    outer = validation(valid_loss)
    meta = learner(learned, make_tx, bounds)
    every = positive_int("every", every)

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
        train, valid = split_step(batch)

        def elementary(learned: Learned) -> State:
            return inner.step(state.inner, current(hparams, learned), train, key)

        def after(learned: Learned) -> tuple[Array, State]:
            end = elementary(learned)
            valid_key = folded(key, VALID_ROLE)
            return outer(inner.params(end), current(hparams, learned), valid, valid_key), end

        def with_update() -> OnlineState:
            hypergradient, end = jax.grad(after, has_aux=True)(state.hparams)
            new, opt_state = meta.update(state.hparams, hypergradient, state.opt_state, hparams)
            return OnlineState(end, new, opt_state, hypergradient, state.count + 1)

        def without() -> OnlineState:
            return state._replace(inner=elementary(state.hparams), count=state.count + 1)

        return jax.lax.cond((state.count + 1) % every == 0, with_update, without)

    return Transition(init, step, lambda state: inner.params(state.inner), why_not=WHY_NOT)

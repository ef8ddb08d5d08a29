"""RTHO, real-time forward mode: hypergradients through the whole past, carried along the training.

Franceschi, Donini, Frasconi and Pontil (2017). With Z_t = ds_t / dlambda, the tangents
of the state, and lambda what is learned,

    Z_{t+1} = A_t Z_t + B_t        hypergradient_t = Z_t^T grad E(s_t) + dE/dlambda

and every so many steps lambda is updated. Z goes on, not reset: later hypergradients are those of
all values of lambda shifted together, at the path that was taken.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from hgrad_jax.inputs.arguments import taken
from hgrad_jax.inputs.functions import is_number, positive_int
from hgrad_jax.online.batches import VALID_ROLE, folded, split_step
from hgrad_jax.online.learned import (
    WHY_NOT,
    Bounds,
    Learned,
    MakeTx,
    current,
    learner,
    require_rule,
    validation,
)
from hgrad_jax.rules.source import Source, read
from hgrad_jax.tools.dtypes import wide
from hgrad_jax.tools.guard import is_float
from hgrad_jax.types import Array, Batch, Hparams, Loss, Params, State, Transition


class RealTimeState(NamedTuple):
    """Parameters, hyperparameters, and the derivatives of the ones by the others.

    Attributes:
      inner: the inner rule's own state.
      hparams: `{name: value}`, the learned hyperparameters, D numbers in all.
      tangents: for each array of floats in `inner`, in its order, `[D, *shape]`: Z.
      opt_state: of the transformation that updates the hyperparameters.
      hypergradient: like hparams, the last one; zero before the first.
      count: int32 scalar, steps taken.
    """

    inner: State
    hparams: Learned
    tangents: list[Array]
    opt_state: Any
    hypergradient: Learned
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]


def rtho(
    inner: Transition,
    valid_loss: Loss,
    *,
    learned: Sequence[str],
    make_tx: MakeTx,
    every: int = 1,
    discount: Source = 1.0,
    bounds: Bounds | None = None,
    memory: float = 2**31,
) -> Transition:
    """Trains, and every `every` steps updates hyperparameters by a hypergradient of the whole past.

    Forward-HG of Franceschi et al. (2017) with updates on the way, their RTHO. The first
    hypergradient is exactly that of `ForwardMode()` over `every` steps; later ones take the
    hyperparameters' changes for a path that was given. Since Z sums up the past, hypergradients
    grow with time and follow a change of direction late, where training does not contract; then let
    old steps fade, Z_{t+1} = A_t (discount Z_t) + B_t (Donini et al. 2020, MARTHE). A discount of 0
    looks back one step, as `t1_t2` does.

    Costs D tangents: the memory of D states, carried, and the time of about D + 1 steps a step. For
    some dozens of hyperparameters, then; for one per weight, `adaptive`. The validation loss is
    evaluated, and differentiated, when hyperparameters are updated only, also under `vmap` of
    `unroll`; where a `vmap` maps the state itself, at every step.

    Args:
      inner: the rule; it finds its hyperparameters in `hparams`, as always.
      valid_loss: `valid_loss(params, hparams, batch, key) -> scalar`, of the validation batch.
      learned: names of the entries of hparams that are learned, such as `("learning_rate",)`.
      make_tx: `make_tx(hparams) -> optax transformation` of `{name: value}`, for instance
        `lambda hparams: optax.adam(0.01)`; `by_sign(...)` makes one.
      every: steps between updates (the paper's hyper-batch), a positive int.
      discount: a number in [0, 1], or a function of hparams.
      bounds: `{name: (lower, upper)}`, numbers or functions of hparams, None for no bound: what is
        learned is clipped to them in each update, as they were in the step before it.
      memory: how many bytes the tangents may take, in each run of a `vmap`; `math.inf` for no
        bound.

    Returns:
      A Transition whose state is a `RealTimeState`: `out.state.hparams` is what was learned. Its
      batches are `Batches`: use `paired`.

    Raises:
      TypeError, ValueError: an argument is not what it should be; when it is traced, the tangents
        take more than `memory`.

    Example:
      >>> import jax.numpy as jnp, optax, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return (params - batch) ** 2 / 2
      >>> settings = {"learned": ("learning_rate",), "make_tx": lambda hparams: optax.sgd(0.5)}
      >>> rule = hg.online.rtho(hg.sgd(loss), loss, every=2, **settings)
      >>> run = hg.Run(rule, num_steps=2, batch_fn=hg.online.paired())
      >>> out = hg.unroll(run, jnp.float32(1), {"learning_rate": 0.5}, (0.0, 0.0))
      >>> out.state.hypergradient["learning_rate"]  # d ((1 - rate)**2)**2 / 2
      Array(-0.25, dtype=float32)
      >>> out.state.hparams["learning_rate"]
      Array(0.625, dtype=float32)
    """
    require_rule(inner)
    outer = validation(valid_loss)
    meta = learner(learned, make_tx, bounds)
    every = positive_int("every", every)
    if not callable(discount):
        _require_fraction(discount)
    (discount,) = taken(discount=discount)
    if not is_number(memory) or not memory > 0:
        raise ValueError(f"memory is {memory!r}; it must be a positive number of bytes.")

    def init(params: Params, hparams: Hparams) -> RealTimeState:
        start = meta.start(hparams)

        def first(learned: Learned) -> tuple[list[Array], State]:
            state = inner.init(params, current(hparams, learned))
            return _floats(state), state

        def column(direction: Learned) -> tuple[list[Array], list[Array], State]:
            return jax.jvp(first, (start,), (direction,), has_aux=True)

        _require_room(start, jax.eval_shape(first, start)[0], memory)
        _, tangents, state = jax.vmap(column, out_axes=(None, 0, None))(_directions(start))
        zeros = jax.tree.map(jnp.zeros_like, start)
        return RealTimeState(state, start, tangents, meta.init(start, hparams), zeros, jnp.int32(0))

    def step(
        state: RealTimeState, hparams: Hparams, batch: Batch, key: Array | None
    ) -> RealTimeState:
        train, valid = split_step(batch)
        factor = read(discount, hparams, "discount")

        def elementary(floats: list[Array], learned: Learned) -> tuple[list[Array], State]:
            before = _filled(state.inner, floats)
            after = inner.step(before, current(hparams, learned), train, key)
            return _floats(after), after

        def column(
            tangents: list[Array], direction: Learned
        ) -> tuple[list[Array], list[Array], State]:
            past = [(factor * z).astype(z.dtype) for z in tangents]
            primals = (_floats(state.inner), state.hparams)
            return jax.jvp(elementary, primals, (past, direction), has_aux=True)

        columns = jax.vmap(column, out_axes=(None, 0, None))
        floats, tangents, after = columns(state.tangents, _directions(state.hparams))

        def at_end(floats: list[Array], learned: Learned) -> Array:
            params = inner.params(_filled(after, floats))
            return outer(params, current(hparams, learned), valid, folded(key, VALID_ROLE))

        def with_update() -> tuple[Learned, Any, Learned]:
            by_state, direct = jax.grad(at_end, argnums=(0, 1))(floats, state.hparams)
            vector, unravel = ravel_pytree(direct)
            past = [_contract(z, bar) for z, bar in zip(tangents, by_state, strict=True)]
            hypergradient = unravel(sum(past, vector).astype(vector.dtype))
            new, opt_state = meta.update(state.hparams, hypergradient, state.opt_state, hparams)
            return new, opt_state, hypergradient

        def without() -> tuple[Learned, Any, Learned]:
            return state.hparams, state.opt_state, state.hypergradient

        count = state.count + 1
        new, opt_state, hypergradient = jax.lax.cond(count % every == 0, with_update, without)
        return RealTimeState(after, new, tangents, opt_state, hypergradient, count)

    return Transition(init, step, lambda state: inner.params(state.inner), why_not=WHY_NOT)


def _directions(learned: Learned) -> Learned:
    """Returns the D unit vectors of what is learned, `[D, *shape]`."""
    vector, unravel = ravel_pytree(learned)
    return jax.vmap(unravel)(jnp.eye(vector.size, dtype=vector.dtype))


def _floats(state: State) -> list[Array]:
    return [x for x in jax.tree.leaves(state) if is_float(x)]


def _filled(state: State, floats: list[Array]) -> State:
    """Returns the state with these arrays of floats in place of its own."""
    leaves, treedef = jax.tree.flatten(state)
    given = iter(floats)
    return jax.tree.unflatten(treedef, [next(given) if is_float(x) else x for x in leaves])


def _contract(tangents: Array, bar: Array) -> Array:
    """Returns `[D]`, the inner product of each tangent with a cotangent."""
    # Not a matrix product, which an accelerator may compute in fewer digits.
    dtype = wide(bar.dtype)
    products = tangents.astype(dtype) * bar[None].astype(dtype)
    return jnp.sum(products.reshape(tangents.shape[0], -1), axis=1)


def _require_room(learned: Learned, state: list[Any], memory: float) -> None:
    """Raises a ValueError if the tangents do not fit the memory."""
    size = sum(x.size for x in jax.tree.leaves(learned))
    taken = size * sum(x.size * x.dtype.itemsize for x in state)
    if taken > memory:
        raise ValueError(
            f"learned has the size {size}, and a state for each number takes {taken:.3g} bytes, "
            f"above memory, {memory:.3g}; learn fewer, as by hg.hyper's sharing, use "
            "hg.online.adaptive, or raise memory."
        )


def _require_fraction(discount: Any) -> None:
    if not is_number(discount) or not 0 <= discount <= 1:
        raise ValueError(
            f"discount is {discount!r}; it must be a number in [0, 1], or a function of hparams."
        )

"""Parameters in classes of one's own, which compare by identity, train as in a dict: to the bit."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import hgrad_jax as hg
from tests.shared import regression


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Registered:
    b: Any
    w: Any


@jax.tree_util.register_pytree_node_class
class Bare:
    """Without __eq__ or __repr__, and with no names for its leaves."""

    def __init__(self, b, w):
        self.b, self.w = b, w

    def tree_flatten(self):
        return (self.b, self.w), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


class Module(nnx.Module):
    def __init__(self, b, w):
        self.b, self.w = nnx.Param(b), nnx.Param(w)


def in_dict(b, w):
    return {"b": b, "w": w}


def state_of_module(b, w):
    return nnx.split(Module(b, w))[1]


CLASSES = {"dataclass": Registered, "node": Bare, "module": Module, "state": state_of_module}
ADJOINTS = {
    "Direct": hg.Direct(),
    "Checkpointed": hg.Checkpointed(),
    "ForwardMode": hg.ForwardMode(),
    "Truncated": hg.Truncated(3),
    "Reversible": hg.Reversible(),
    "Reversible, apart": hg.Reversible(share_gradient=False),
    "Waypoints": hg.Waypoints(2),
    "Waypoints, undone": hg.Waypoints(2, undone_steps=None),
    "EqualArcLength": hg.Waypoints(2, placement=hg.EqualArcLength()),
    "DrMAD": hg.DrMAD(),
    "DrMAD2": hg.DrMAD2(),
}
RULES = list(regression.ALL_RULES)
PAIRS = [(rule, "Direct") for rule in RULES]
PAIRS += [(rule, "Reversible") for rule in ("momentum", "rmsprop_momentum", "adamw", "average")]
PAIRS += [("momentum", name) for name in ADJOINTS if name not in ("Direct", "Reversible")]


def as_dict(params):
    b, w = jax.tree.leaves(params)
    return {"b": b, "w": w}


def in_class(make):
    """A quick loss for parameters that `make` holds."""

    def loss(params, hparams, batch, key):
        assert jax.tree.structure(params) == jax.tree.structure(make(0, 0))
        held = as_dict(params)
        l2 = jnp.exp(hparams["log_l2"]) * jnp.sum(held["w"] ** 2)
        return jnp.mean(jnp.cosh(regression.residual(held, batch))) + l2

    return loss


def gradients(make, rule, adjoint):
    """`(b, w, rate of b, of w, momentum, log_l2) -> value and gradients`, as lists."""
    of_params = isinstance(adjoint, hg.ForwardMode)

    def value(leaves):
        b, w, rate_b, rate_w, momentum, log_l2 = leaves
        rate = 0.1 if rule == "from_optax" else make(rate_b, rate_w)
        hparams = {"learning_rate": rate, "momentum": momentum, "log_l2": log_l2}
        out = hg.unroll(
            hg.Run(regression.ALL_RULES[rule](in_class(make)), num_steps=5, adjoint=adjoint),
            jax.lax.stop_gradient(make(b, w)) if of_params else make(b, w),
            hparams,
            regression.data(),
        )
        end = as_dict(out.params)
        return jnp.sum(end["w"] ** 3) + end["b"]

    return jax.value_and_grad(value)


def leaves():
    start = regression.start()
    return [start["b"], start["w"], *map(jnp.float32, (0.1, 0.05, 0.8, -2.0))]


def program(make, rule, adjoint):
    return jax.jit(gradients(make, rule, ADJOINTS[adjoint])).lower(leaves()).as_text()


@pytest.mark.parametrize(
    ("rule", "adjoint", "name"),
    [(*pair, list(CLASSES)[i % len(CLASSES)]) for i, pair in enumerate(PAIRS)],
)
def test_the_program_is_that_of_a_dict(rule, adjoint, name):
    """What is compiled is the same text, so its bits are the same."""
    assert program(CLASSES[name], rule, adjoint) == program(in_dict, rule, adjoint)


def assert_same_bits(ours, theirs):
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


HPARAMS = {"learning_rate": 0.1, "momentum": 0.8, "log_l2": -2.0}


def start_of(make):
    return make(**regression.start())


def end_of(params, hparams, data=None):
    end = as_dict(params)
    return jnp.sum(end["w"] ** 3) + end["b"]


KEY = jnp.asarray(regression.KEY)


def fitted(make):
    loss = in_class(make)
    out = hg.fit(
        *(hg.momentum(loss), start_of(make), HPARAMS, regression.data(), regression.data()),
        num_epochs=2,
        steps_per_epoch=3,
        loss=loss,
        metrics=lambda params, data: {"end": end_of(params, None)},
        key=KEY,
    )
    return out.params, out.history.step_loss, out.history.metrics["valid_end"]


def tuned(make):
    """Rates are one per tensor, in the class too."""
    out = hg.tune(
        end_of,
        hg.Run(hg.momentum(in_class(make)), num_steps=4, adjoint=hg.Reversible()),
        start_of(make),
        HPARAMS | {"learning_rate": make(jnp.float32(0.1), jnp.float32(0.05))},
        *(regression.data(), None),
        num_meta_steps=2,
        optimizer=hg.projected(
            optax.adam(0.01), lambda hparams: jax.tree.map(lambda x: jnp.minimum(x, 0.9), hparams)
        ),
        key=KEY,
    )
    return out.hparams, out.history.value


def shared(make):
    small, full = [], []
    for sharing in (hg.hyper.one_for_all(), hg.hyper.per_tensor(), hg.hyper.per_parameter()):
        small.append(sharing.init(start_of(make), 0.5))
        full.append(sharing.expand(small[-1], start_of(make)))
    return small, full


def distant(make):
    target = make(b=jnp.float32(1.0), w=jnp.ones(3))
    run = hg.Run(hg.momentum(in_class(make)), num_steps=4)
    return hg.distances_to(run, start_of(make), HPARAMS, regression.data(), target, key=KEY)


def at_rest(make):
    """Implicit differentiation, at a fixed point."""
    loss = in_class(make)

    def fixed(params, hparams, batch, key):
        gradient = jax.grad(loss)(params, hparams, batch, key)
        return jax.tree.map(lambda x, g: x - 0.1 * g, params, gradient)

    def value(log_l2):
        hparams = HPARAMS | {"log_l2": log_l2, "momentum": 0.0}
        adjoint = hg.Implicit(hg.FixedPoint(fixed), hg.Neumann(0.5), batches=1)
        run = hg.Run(hg.momentum(loss), num_steps=30, adjoint=adjoint)
        out = hg.unroll(run, start_of(make), hparams, regression.data())
        return end_of(out.params, hparams)

    return jax.jit(jax.value_and_grad(value))(jnp.float32(-2.0))


def checked(make):
    run = hg.Run(hg.momentum(in_class(make)), num_steps=3)
    args = (run, start_of(make), HPARAMS, regression.data())
    report = hg.check_hypergradient(end_of, *args, num_samples=1, key=KEY)
    report.raise_if_wrong()
    return [entry.gradient for entry in report.entries + report.directions]


def checked_gradient(make):
    report = hg.check_gradient(
        in_class(make), start_of(make), HPARAMS, regression.data(), KEY, num_samples=1
    )
    report.raise_if_wrong()
    return [entry.reference for entry in report.entries]


def products(make):
    args = (regression.data(), KEY)
    ones = make(b=jnp.float32(1.0), w=jnp.ones(3))
    loss = in_class(make)
    hparams = jax.tree.map(jnp.float32, HPARAMS)
    return (
        hg.hvp(loss, start_of(make), ones, hparams, *args),
        hg.mixed_product(loss, start_of(make), hparams, ones, *args),
    )


def noisy(make):
    """Clipped forward gradients with noise and weight decay, averaged."""
    gradient = hg.modified(
        hg.forward_gradient(hg.Rademacher()),
        hg.add_noise(0.1),
        hg.add_weight_decay(0.1),
        hg.clip_by_norm(1.0),
        hg.clip_by_value(0.5),
    )
    rule = hg.average(hg.sgd(in_class(make), gradient=gradient), decay=0.5)
    out = hg.unroll(hg.Run(rule, num_steps=3), start_of(make), HPARAMS, regression.data(), key=KEY)
    return out.params, out.state.average


def online(make):
    loss = in_class(make)
    rule = hg.online.t1_t2(
        hg.momentum(loss),
        loss,
        learned=("log_l2",),
        make_tx=lambda hparams: optax.adam(0.02),
    )
    data = (regression.data(), regression.data())
    batch_fn = hg.online.paired()
    out = hg.unroll(hg.Run(rule, num_steps=3, batch_fn=batch_fn), start_of(make), HPARAMS, data)
    return out.params, out.state.hparams


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (fitted, ["module"]),
        (tuned, ["module"]),
        (shared, CLASSES),
        (distant, ["dataclass", "node"]),
        (at_rest, ["dataclass"]),
        (checked, ["node"]),
        (checked_gradient, ["state"]),
        (products, CLASSES),
        (noisy, ["dataclass"]),
        (online, ["module"]),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_everything_takes_classes_as_it_takes_dicts(result, names):
    want = result(in_dict)
    for name in names:
        assert_same_bits(result(CLASSES[name]), want)


def test_structures_are_compared_and_not_contents():
    """Of what Python takes for equal, too: a tuple for a named one, another order of names."""
    with pytest.raises(ValueError, match=r"direction has the shapes .* it must be like params"):
        hg.hvp(
            lambda params, hparams, batch, key: params.b**2,
            Registered(1.0, jnp.ones(3)),
            Bare(1.0, jnp.ones(3)),
            {},
            None,
            None,
        )
    pair = optax.EmptyState()
    assert pair == ()
    with pytest.raises(ValueError, match=r"one_for_all expands one scalar: got EmptyState\(\)"):
        hg.hyper.one_for_all().expand(pair, jnp.ones(3))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Registered, r"Registered\(b=\(\), w=\(2,\)\)"),
        (Bare, r"\{'\[<flat index 0>\]': \(\), '\[<flat index 1>\]': \(2,\)\}"),
        (state_of_module, r"\{\"\['b'\].*\": \(\), \"\['w'\].*\": \(2,\)\}"),
    ],
)
def test_a_message_shows_the_shapes_that_a_class_holds(make, text):
    with pytest.raises(ValueError, match="target_params has the shapes " + text):
        hg.distances_to(
            hg.Run(hg.momentum(in_class(make)), num_steps=1),
            *(start_of(make), HPARAMS, regression.data()),
            make(b=jnp.float32(1.0), w=jnp.ones(2)),
        )

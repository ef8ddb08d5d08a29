"""A single update for a gradient that is given, and what is done to gradients and parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import hgrad_jax as hg

H = {
    "learning_rate": 0.07,
    "momentum": 0.8,
    "decay": 0.6,
    "b1": 0.7,
    "b2": 0.85,
    "eps": 0.05,
    "weight_decay": 0.2,
    "average_decay": 0.65,
}
X = {"w": np.array([[0.5, -2.0], [3.0, 1e-3]]), "b": np.array(-0.7)}
G = {"w": np.array([[-1.5, 0.3], [0.0, 40.0]]), "b": np.array(2.5)}
V = {"w": np.array([[0.2, -0.1], [1.0, -3.0]]), "b": np.array(0.4)}
A = {"w": np.array([[0.3, 2.0], [0.0, 5.0]]), "b": np.array(1.7)}
COUNT = 4  # steps before


def loss(params, hparams, batch, key):
    return jnp.sum(ravel_pytree(params)[0] ** 2) / 2


def momentum(x, g, v, h):
    v = h["momentum"] * v - (1 - h["momentum"]) * g
    return x + h["learning_rate"] * v, v


def heavy_ball(x, g, v, h):
    v = h["momentum"] * v + g
    return x - h["learning_rate"] * v, v


def classical_momentum(x, g, v, h):
    v = h["momentum"] * v - h["learning_rate"] * g
    return x + v, v


def nesterov(x, g, v, h):
    new = h["momentum"] * v - h["learning_rate"] * g
    return x - h["momentum"] * v + (1 + h["momentum"]) * new, new


def rmsprop(x, g, a, h):
    a = h["decay"] * a + (1 - h["decay"]) * g**2
    return x - h["learning_rate"] * g / (np.sqrt(a) + h["eps"]), a


def adam(x, g, m, a, h, weight_decay=0.0):
    m = h["b1"] * m + (1 - h["b1"]) * g
    a = h["b2"] * a + (1 - h["b2"]) * g**2
    mean, square = m / (1 - h["b1"] ** (COUNT + 1)), a / (1 - h["b2"] ** (COUNT + 1))
    step = mean / (np.sqrt(square) + h["eps"]) + weight_decay * x
    return x - h["learning_rate"] * step, m, a


def rmsprop_momentum(x, g, a, v, h):
    a = h["decay"] * a + (1 - h["decay"]) * g**2
    v = h["momentum"] * v + g / (np.sqrt(a) + h["eps"])
    return x - h["learning_rate"] * v, a, v


def average(x, g, v, average, h):
    x, v = heavy_ball(x, g, v, h)
    return x, v, h["average_decay"] * average + (1 - h["average_decay"]) * x


B1, B2, EPS, DECAY = (hg.field(name) for name in ("b1", "b2", "eps", "decay"))
CASES = {
    "sgd": (hg.sgd(loss), lambda x, g, h: (x - h["learning_rate"] * g,), {}),
    "momentum": (hg.momentum(loss), momentum, {"velocity": V}),
    "heavy_ball": (hg.heavy_ball(loss), heavy_ball, {"velocity": V}),
    "classical_momentum": (hg.classical_momentum(loss), classical_momentum, {"velocity": V}),
    "nesterov": (hg.nesterov(loss), nesterov, {"velocity": V}),
    "rmsprop": (hg.rmsprop(loss, decay=DECAY, eps=EPS), rmsprop, {"second_moment": A}),
    "rmsprop_momentum": (
        hg.rmsprop_momentum(loss, decay=DECAY, eps=EPS),
        rmsprop_momentum,
        {"second_moment": A, "velocity": V},
    ),
    "adam": (hg.adam(loss, b1=B1, b2=B2, eps=EPS), adam, {"first_moment": V, "second_moment": A}),
    "adamw": (
        hg.adamw(loss, b1=B1, b2=B2, eps=EPS),
        lambda x, g, m, a, h: adam(x, g, m, a, h, h["weight_decay"]),
        {"first_moment": V, "second_moment": A},
    ),
    "average": (hg.average(hg.heavy_ball(loss)), average, {"velocity": V, "average": A}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_single_update_equals_a_hand_computation(name):
    rule, by_hand, slots = CASES[name]
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, (X, G, slots))
        params, new = rule.update(*arrays, H, COUNT)
        for key in X:
            want = by_hand(X[key], G[key], *(slot[key] for slot in slots.values()), H)
            got = (params[key], *(new[slot][key] for slot in slots))
            for ours, theirs in zip(got, want, strict=True):
                assert ours.dtype == np.float64
                np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [*CASES, "from_optax", "average_of_sgd", "in a box"])
def test_updates_by_hand_make_the_same_run(name):
    """From the rule's own start, the count passed on by hand."""
    others = {
        "from_optax": hg.from_optax(lambda h: optax.adam(h["learning_rate"]), loss),
        "average_of_sgd": hg.average(hg.sgd(loss)),
        "in a box": hg.project_to_box(hg.adam(loss), lower=-1.0, upper=0.45),
    }
    rule = others[name] if name in others else CASES[name][0]
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), X)
    trained = jax.jit(lambda p, h: hg.unroll(hg.Run(rule, num_steps=3), p, h, None).state)(start, H)
    params, slots = start, None
    for count in range(3):
        gradient = jax.grad(loss)(params, H, None, None)
        params, slots = rule.update(params, gradient, slots, H, count)
    assert slots is not None
    inner = getattr(trained, "inner", trained)
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(inner.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    if name == "average_of_sgd":
        np.testing.assert_allclose(slots[1]["w"], trained.average["w"], rtol=1e-6)


def both(gradient, transformation, hparams, num_steps=100):
    """100 steps of SGD with our modifiers, and with optax's."""
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), X)
    ours = hg.sgd(loss, gradient=gradient)
    theirs = hg.from_optax(
        lambda h: optax.chain(transformation(h), optax.sgd(h["learning_rate"])), loss
    )

    @jax.jit
    def ends(params, hparams):
        return [
            hg.unroll(hg.Run(rule, num_steps=num_steps), params, hparams, None).params
            for rule in (ours, theirs)
        ]

    return ends(start, hparams)


MODIFIERS = {
    "weight decay": (
        [hg.add_weight_decay()],
        lambda h: optax.add_decayed_weights(h["weight_decay"]),
    ),
    "clip by value": ([hg.clip_by_value()], lambda h: optax.clip(h["clip"])),
    "clip by norm": ([hg.clip_by_norm()], lambda h: optax.clip_by_global_norm(h["clip"])),
    "both, in order": (
        [hg.clip_by_norm(hg.field("clip")), hg.add_weight_decay()],
        lambda h: optax.chain(
            optax.clip_by_global_norm(h["clip"]), optax.add_decayed_weights(h["weight_decay"])
        ),
    ),
    "both, the other way round": (
        [hg.add_weight_decay(), hg.clip_by_norm(hg.field("clip"))],
        lambda h: optax.chain(
            optax.add_decayed_weights(h["weight_decay"]), optax.clip_by_global_norm(h["clip"])
        ),
    ),
}


@pytest.mark.parametrize("name", MODIFIERS)
def test_modifiers_are_those_of_optax(name):
    modifiers, transformation = MODIFIERS[name]
    h = {k: jnp.float32(v) for k, v in (H | {"clip": 0.9}).items()}
    ours, theirs = both(hg.modified(hg.backpropagation, *modifiers), transformation, h)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_the_order_of_modifiers_matters():
    first, _ = both(
        hg.modified(hg.backpropagation, *MODIFIERS["both, in order"][0]),
        lambda h: optax.identity(),
        H | {"clip": 0.9},
        3,
    )
    second, _ = both(
        hg.modified(hg.backpropagation, *MODIFIERS["both, the other way round"][0]),
        lambda h: optax.identity(),
        H | {"clip": 0.9},
        3,
    )
    assert np.max(np.abs(first["w"] - second["w"])) > 1e-3


def hypergradients(make_rule, hparams, adjoint, start, num_steps=6):
    @jax.jit
    def end(hparams):
        out = hg.unroll(
            hg.Run(make_rule(), num_steps=num_steps, adjoint=adjoint), start, hparams, None
        )
        return jnp.sum(jnp.sin(jnp.concatenate([x.ravel() for x in jax.tree.leaves(out.params)])))

    return end, jax.jit(jax.grad(end))


MODIFIED = hg.modified(
    hg.backpropagation,
    hg.add_weight_decay(),
    hg.clip_by_value(hg.field("value")),
    hg.clip_by_norm(hg.field("norm")),
)
IN_A_BOX = {"lower": hg.field("lower"), "upper": hg.field("upper")}


@pytest.mark.parametrize(
    ("make_rule", "adjoints"),
    [
        (
            lambda: hg.heavy_ball(loss, gradient=MODIFIED),
            [hg.Direct(), hg.Checkpointed(), hg.ForwardMode(), hg.Reversible()],
        ),
        (
            lambda: hg.project_to_box(hg.heavy_ball(loss, gradient=MODIFIED), **IN_A_BOX),
            [hg.Direct(), hg.Checkpointed(), hg.ForwardMode()],
        ),
    ],
    ids=["modified", "in a box"],
)
def test_hypergradients_of_bounds_and_coefficients(make_rule, adjoints):
    """Every exact adjoint against central differences in float64; each bound is active."""
    with jax.enable_x64(True):
        start = jax.tree.map(jnp.asarray, X)
        names = ("learning_rate", "momentum", "weight_decay", "value", "norm", "lower", "upper")
        values = (0.3, 0.6, 0.2, 1.1, 1.3, -1.7, 2.2)
        h = {name: jnp.asarray(v) for name, v in zip(names, values, strict=True)}
        end, _ = hypergradients(make_rule, h, hg.Direct(), start)
        found = [hypergradients(make_rule, h, adjoint, start)[1](h) for adjoint in adjoints]
        step = 1e-5
        for name in names:
            ends = [end(h | {name: h[name] + s * step}) for s in (1, -1)]
            want = (ends[0] - ends[1]) / (2 * step)
            is_used = name not in ("lower", "upper") or "project" in str(make_rule().why_not)
            assert (abs(want) > 1e-3) == is_used, name
            for bars in found:
                np.testing.assert_allclose(bars[name], want, rtol=1e-7, atol=1e-9)


def test_clipping_a_gradient_of_zero_has_a_finite_derivative():
    def end(bound):
        rule = hg.sgd(
            lambda params, hparams, batch, key: jnp.sum(params**2),
            learning_rate=0.1,
            gradient=hg.modified(hg.backpropagation, hg.clip_by_norm(lambda hparams: hparams)),
        )
        return jnp.sum(hg.unroll(hg.Run(rule, num_steps=2), jnp.zeros(2), bound, None).params)

    assert jax.grad(end)(jnp.float32(1)) == 0


def test_a_box_per_tensor():
    rule = hg.project_to_box(
        hg.sgd(loss, learning_rate=0.0),
        lower=lambda hparams: {"w": 0.0, "b": -jnp.inf},
        upper=jnp.inf,
    )
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), X)
    params = hg.unroll(hg.Run(rule, num_steps=1), start, {}, None).params
    np.testing.assert_allclose(params["w"], np.maximum(X["w"], 0))
    np.testing.assert_allclose(params["b"], X["b"])


class TestRefusals:
    def test_projecting_an_average(self):
        with pytest.raises(ValueError, match="project first"):
            hg.project_to_box(hg.average(hg.heavy_ball(loss)), lower=0, upper=1)
        rule = hg.project_to_box(
            hg.average(hg.sgd(loss, learning_rate=0.1), decay=0.5), lower=0, upper=1
        )
        with pytest.raises(ValueError, match="project first"):
            hg.unroll(hg.Run(rule, num_steps=1), jnp.ones(2), {}, None)

    def test_projecting_a_state_without_params(self):
        plain = hg.Transition(lambda p, h: p, lambda s, h, b, k: s, lambda s: s)
        rule = hg.project_to_box(plain, lower=0, upper=1)
        with pytest.raises(ValueError, match="NamedTuple with the field params"):
            hg.unroll(hg.Run(rule, num_steps=1), jnp.ones(2), {}, None)

    def test_reversing_a_projection(self):
        rule = hg.project_to_box(hg.heavy_ball(loss), lower=0, upper=1)
        with pytest.raises(ValueError, match="a projection forgets how far outside"):
            hg.unroll(hg.Run(rule, num_steps=1, adjoint=hg.Reversible()), jnp.ones(2), H, None)

    def test_a_bound_for_each_tensor_where_one_norm_is_bounded(self):
        bounds = hg.clip_by_norm(lambda hparams: {"w": 1.0, "b": 2.0})
        rule = hg.sgd(loss, gradient=hg.modified(hg.backpropagation, bounds))
        with pytest.raises(ValueError, match="one norm over all tensors"):
            hg.unroll(hg.Run(rule, num_steps=1), jnp.ones(2), H, None)

    @pytest.mark.parametrize("make_rule", [hg.momentum, hg.sgd, hg.adam])
    def test_providers(self, make_rule):
        wrong: Any = 0.5
        with pytest.raises(TypeError, match=r"gradient takes .* but is called as gradient\(loss\)"):
            make_rule(loss, gradient=lambda params, hparams, batch, key: params)
        with pytest.raises(TypeError, match=r"gradient is 3, .* pass hg.backpropagation"):
            make_rule(loss, gradient=3)
        with pytest.raises(TypeError, match="what_gradient_returned is"):
            make_rule(loss, gradient=lambda loss: jnp.ones(3))
        with pytest.raises(TypeError, match="loss is None, but is called as loss"):
            make_rule(None)
        with pytest.raises(TypeError, match=r"modifier is 0.5, but"):
            make_rule(loss, gradient=hg.modified(hg.backpropagation, wrong))

    def test_from_optax_without_a_function(self):
        made: Any = optax.sgd(0.1)
        gradient: Any = loss
        with pytest.raises(
            TypeError, match="make_tx is GradientTransformationExtraArgs, but is called"
        ):
            hg.from_optax(made, loss)
        with pytest.raises(TypeError, match="loss is GradientTransformationExtraArgs, but is"):
            hg.from_optax(lambda h: optax.sgd(0.1), made)
        with pytest.raises(TypeError, match="gradient takes"):
            hg.from_optax(lambda h: optax.sgd(0.1), loss, gradient=gradient)

    def test_a_loss_with_something_beside_it(self):
        both: Any = lambda params, hparams, batch, key: (jnp.sum(params), params)  # noqa: E731
        rule = hg.sgd(both)
        with pytest.raises(ValueError, match="loss returned a tuple; it must return one"):
            hg.unroll(hg.Run(rule, num_steps=1), jnp.ones(2), H, None)

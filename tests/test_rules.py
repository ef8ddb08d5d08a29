import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.elementary.adam import correction
from hgrad_jax.elementary.arithmetic import merge, root

KEY = jax.random.key(0)
T = 12
DATA = (
    jax.random.normal(jax.random.fold_in(KEY, 1), (6, 3)),
    jax.random.normal(jax.random.fold_in(KEY, 2), (6, 2)),
)
PARAMS = {
    "w": jax.random.normal(jax.random.fold_in(KEY, 3), (3, 2)) / 2,
    "b": jnp.array([0.1, -0.3]),
}
END_BAR = {"w": jnp.arange(6.0).reshape(3, 2) - 2.5, "b": jnp.array([1.0, -2.0])}
ADJOINTS = [hg.Direct(), hg.Checkpointed(), hg.Checkpointed(branching=2), hg.Reversible()]


def batch_fn(data, t, key):
    return jax.tree.map(lambda x: jnp.roll(x, t, axis=0)[:4], data)


def loss(params, hparams, batch, key):
    x, y = batch
    error = jnp.tanh(x @ params["w"] + params["b"]) - y
    return jnp.mean(error**2) + hparams["penalty"] * jnp.sum(params["w"] ** 2)


def everywhere(name):
    """A hyperparameter in all its forms at once: scalar * per step * (per number, per tensor)."""

    def source(hparams):
        h = hparams[name]
        return jax.tree.map(lambda scale: h["scalar"] * h["step"] * scale, h["scale"])

    return source


def below_one(seed, shape):
    """Factors that keep a decay below one."""
    return 1 - 0.05 * jax.random.uniform(jax.random.fold_in(KEY, seed), shape)


LEARNING_RATE = {
    "scalar": jnp.float32(0.05),
    "step": below_one(4, (T,)),
    "scale": {"w": below_one(5, (3, 2)), "b": below_one(6, ())},
}
PER_STEP = below_one(7, (T,))
PER_TENSOR = {"w": below_one(8, ()), "b": below_one(9, ())}
PER_NUMBER = {"w": below_one(10, (3, 2)), "b": below_one(11, (2,))}


def scaled(value, forms):
    return jax.tree.map(lambda x: value * x, forms)


# Each rule with the hyperparameters that it is differentiated in besides the learning rate, in all
# their forms: a scalar, per step (named step_...), per tensor, per number.
RATE = everywhere("learning_rate")
RMSPROP_VALUES = {"decay": scaled(0.95, PER_NUMBER), "step_eps": 1e-2 * PER_STEP}
BALL = hg.heavy_ball(loss, learning_rate=RATE, momentum=0.8)
RULES = {
    "sgd": (hg.sgd(loss, learning_rate=RATE), {}),
    "nesterov": (
        hg.nesterov(loss, learning_rate=RATE, momentum=hg.field("step_momentum")),
        {"step_momentum": 0.8 * PER_STEP},
    ),
    "rmsprop": (
        hg.rmsprop(loss, learning_rate=RATE, decay=hg.field("decay"), eps=hg.field("step_eps")),
        RMSPROP_VALUES,
    ),
    "rmsprop_momentum": (
        hg.rmsprop_momentum(
            loss, learning_rate=RATE, decay=hg.field("decay"), eps=hg.field("step_eps")
        ),
        RMSPROP_VALUES | {"momentum": scaled(0.8, PER_TENSOR)},
    ),
    "adam": (
        hg.adam(
            loss, learning_rate=RATE, b1=hg.field("step_b1"), b2=hg.field("b2"), eps=hg.field("eps")
        ),
        {
            "step_b1": 0.9 * PER_STEP,
            "b2": scaled(0.99, PER_NUMBER),
            "eps": jnp.float32(1e-2),
        },
    ),
    "adamw": (
        hg.adamw(
            loss, learning_rate=RATE, b1=hg.field("b1"), b2=hg.field("step_b2"), eps=hg.field("eps")
        ),
        {
            "b1": scaled(0.9, PER_NUMBER),
            "step_b2": 0.99 * PER_STEP,
            "eps": scaled(1e-2, PER_TENSOR),
            "weight_decay": {"w": 0.3 * PER_NUMBER["w"], "b": jnp.float32(0.1)},
        },
    ),
    "average": (
        hg.average(BALL, decay=hg.field("step_decay")),
        {"step_decay": 0.9 * PER_STEP},
    ),
    "polyak_average": (hg.polyak_average(BALL), {}),
    "average_of_sgd": (
        hg.average(hg.sgd(loss, learning_rate=RATE), decay=hg.field("decay")),
        {"decay": scaled(0.9, PER_NUMBER)},
    ),
    "from_optax": (
        hg.from_optax(
            lambda h: optax.sgd(
                h["learning_rate"]["scalar"] * h["learning_rate"]["step"],
                momentum=h["momentum"],
                nesterov=True,
            ),
            loss,
        ),
        {"momentum": jnp.float32(0.8)},
    ),
}
IRREVERSIBLE = ("sgd", "nesterov", "rmsprop", "average_of_sgd", "from_optax")


def hparams_of(name):
    values = {"penalty": jnp.float32(0.03), "learning_rate": LEARNING_RATE} | RULES[name][1]
    axes = {key: 0 if key.startswith("step_") else None for key in values}
    return values, axes | {"learning_rate": {"scalar": None, "step": 0, "scale": None}}


def label(adjoint):
    branching = getattr(adjoint, "branching", None)
    return type(adjoint).__name__ + (str(branching) if branching else "")


def table():
    """Rules and adjoints: quick ones by default, the others when slow tests are asked for."""
    for name in RULES:
        quick = hg.Checkpointed() if name in IRREVERSIBLE else hg.Reversible()
        for adjoint in ADJOINTS[1:]:
            if not (name in IRREVERSIBLE and adjoint == hg.Reversible()):
                marks = [] if adjoint == quick and name != "adam" else [pytest.mark.slow]
                yield pytest.param(name, adjoint, marks=marks, id=f"{name}-{label(adjoint)}")


@functools.partial(jax.jit, static_argnames=("name", "adjoint"))
def run(name, adjoint, params, hparams):
    """End of the run, cotangents of its start and hyperparameters, and the info of the way back."""
    axes = hparams_of(name)[1]
    out, pullback = hg.vjp(
        RULES[name][0],
        params,
        hparams,
        DATA,
        num_steps=T,
        batch_fn=batch_fn,
        hparams_axes=axes,
        adjoint=adjoint,
    )
    bars, info = pullback(END_BAR)
    return out.params, bars, info


def assert_close(a, b, rtol):
    """Leaf by leaf, relative to the leaf's norm."""
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        scale = np.linalg.norm(np.asarray(y))
        error = np.linalg.norm(np.asarray(x) - np.asarray(y))
        assert error <= rtol * scale, f"{jax.tree_util.keystr(path)}: {error / scale:.2e}"


def simulate(rule, hparams, num_steps=100, axes=None, params=PARAMS):
    """Parameters after every step `[T, ...]`, in ordinary floating point."""

    @jax.jit
    def trained(params, hparams):
        return hg.unroll(
            rule,
            params,
            hparams,
            DATA,
            num_steps=num_steps,
            batch_fn=batch_fn,
            hparams_axes=axes,
            record=lambda state, data: rule.params(state),
        ).trace

    return trained(params, hparams)


def simulate_optax(make_tx, hparams, num_steps=100, schedules=()):
    def body(carry, t):
        params, opt_state = carry
        h = {k: v[t] if k in schedules else v for k, v in hparams.items()}
        grads = jax.grad(loss)(params, h, batch_fn(DATA, t, None), None)
        updates, opt_state = make_tx(h).update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    @jax.jit
    def trained(hparams):
        start = make_tx({k: v[0] if k in schedules else v for k, v in hparams.items()}).init(PARAMS)
        return jax.lax.scan(body, (PARAMS, start), jnp.arange(num_steps))[1]

    return trained(hparams)


class TestTrajectories:
    """100 steps beside optax."""

    H = {  # noqa: RUF012
        "penalty": jnp.float32(0.03),
        "learning_rate": jnp.float32(0.01),
        "momentum": jnp.float32(0.8),
        "weight_decay": jnp.float32(0.2),
        "decay": jnp.float32(0.95),
        "b1": jnp.float32(0.85),
        "b2": jnp.float32(0.98),
        "eps": jnp.float32(1e-3),
    }
    CASES = {  # noqa: RUF012
        "sgd": (hg.sgd(loss), lambda h: optax.sgd(h["learning_rate"])),
        "heavy_ball": (
            hg.heavy_ball(loss),
            lambda h: optax.sgd(h["learning_rate"], momentum=h["momentum"]),
        ),
        "classical_momentum": (
            hg.classical_momentum(loss),
            lambda h: optax.sgd(h["learning_rate"], momentum=h["momentum"]),
        ),
        "nesterov": (
            hg.nesterov(loss),
            lambda h: optax.sgd(h["learning_rate"], momentum=h["momentum"], nesterov=True),
        ),
        "rmsprop": (
            hg.rmsprop(loss, decay=hg.field("decay"), eps=hg.field("eps")),
            lambda h: optax.rmsprop(h["learning_rate"], h["decay"], h["eps"], eps_in_sqrt=False),
        ),
        "rmsprop_momentum": (
            hg.rmsprop_momentum(loss, decay=hg.field("decay"), eps=hg.field("eps")),
            lambda h: optax.rmsprop(
                h["learning_rate"],
                h["decay"],
                h["eps"],
                eps_in_sqrt=False,
                momentum=h["momentum"],
            ),
        ),
        "adam": (
            hg.adam(loss, b1=hg.field("b1"), b2=hg.field("b2"), eps=hg.field("eps")),
            lambda h: optax.adam(h["learning_rate"], h["b1"], h["b2"], h["eps"]),
        ),
        "adamw": (
            hg.adamw(loss, b1=hg.field("b1"), b2=hg.field("b2"), eps=hg.field("eps")),
            lambda h: optax.adamw(
                h["learning_rate"], h["b1"], h["b2"], h["eps"], weight_decay=h["weight_decay"]
            ),
        ),
        "from_optax": (
            hg.from_optax(lambda h: optax.adabelief(h["learning_rate"], eps=1e-3), loss),
            lambda h: optax.adabelief(h["learning_rate"], eps=1e-3),
        ),
    }

    @pytest.mark.parametrize("name", CASES)
    def test_is_that_of_optax(self, name):
        rule, make_tx = self.CASES[name]
        assert_close(simulate(rule, self.H), simulate_optax(make_tx, self.H), 1e-6)

    def test_small_weight_decays_are_those_of_optax(self):
        """Also where lr wd is less than a float32 next to 1 can tell."""
        rule, make_tx = self.CASES["adamw"]
        rates, strengths = np.meshgrid([1e-4, 1e-3, 1e-2], [1e-4, 1e-3, 1e-2, 0.1, 0.3])

        def many(simulated):
            def one(rate, strength):
                return simulated(self.H | {"learning_rate": rate, "weight_decay": strength})

            return jax.vmap(one)(jnp.float32(rates.ravel()), jnp.float32(strengths.ravel()))

        ours = many(lambda h: simulate(rule, h))
        theirs = many(lambda h: simulate_optax(make_tx, h))
        for i in range(rates.size):
            one, other = (jax.tree.map(lambda x, i=i: x[i], both) for both in (ours, theirs))
            assert_close(one, other, 1e-6)

    def test_is_that_of_optax_under_schedules(self):
        rule, make_tx = self.CASES["adamw"]
        ramp = jnp.linspace(1.0, 0.8, 100)
        schedules = ("learning_rate", "b1", "b2")
        h = self.H | {k: self.H[k] * ramp for k in schedules}
        axes = {k: 0 if k in schedules else None for k in h}
        ours = simulate(rule, h, axes=axes)
        assert_close(ours, simulate_optax(make_tx, h, 100, schedules), 1e-6)

    def test_defaults_of_adam_are_those_of_optax(self):
        h = {"penalty": jnp.float32(0.03), "learning_rate": jnp.float32(1e-2)}
        theirs = simulate_optax(lambda h: optax.adam(h["learning_rate"]), h)
        # optax rounds 1 - b2 and 1 - b2**t apart, which differ by 1.3e-5 at t = 1.
        assert_close(simulate(hg.adam(loss), h), theirs, 1e-5)


def by_hand(name, g, x, h, steps):
    """Some steps of a rule in float64: the parameters, their moving average and their mean."""
    m = v = a = np.zeros_like(x)
    average, total = x, x
    for t in range(steps):
        grad = g(x)
        if name == "sgd":
            x = x - h["learning_rate"] * grad
        elif name == "nesterov":
            old, v = v, h["momentum"] * v - h["learning_rate"] * grad
            x = x - h["momentum"] * old + (1 + h["momentum"]) * v
        elif name in ("rmsprop", "rmsprop_momentum"):
            a = h["decay"] * a + (1 - h["decay"]) * grad**2
            step = grad / (np.sqrt(a) + h["eps"])
            v = h["momentum"] * v + step
            x = x - h["learning_rate"] * (step if name == "rmsprop" else v)
        else:
            m = h["b1"] * m + (1 - h["b1"]) * grad
            a = h["b2"] * a + (1 - h["b2"]) * grad**2
            mean, square = m / (1 - h["b1"] ** (t + 1)), a / (1 - h["b2"] ** (t + 1))
            decay = h["weight_decay"] if name == "adamw" else 0.0
            x = x - h["learning_rate"] * (mean / (np.sqrt(square) + h["eps"]) + decay * x)
        average = h["average_decay"] * average + (1 - h["average_decay"]) * x
        total = total + x
    return x, average, total / (steps + 1)


class TestByHand:
    H = {  # noqa: RUF012
        "learning_rate": 0.07,
        "momentum": 0.6,
        "decay": 0.8,
        "weight_decay": 0.4,
        "b1": 0.7,
        "b2": 0.9,
        "eps": 0.05,
        "average_decay": 0.65,
    }
    X = np.array([0.5, -2.0, 3.0])

    @staticmethod
    def quartic(params, hparams, batch, key):
        return jnp.sum(params**4) / 4

    @classmethod
    def rule(cls, name, gradient=hg.backpropagation):
        fields = {
            "rmsprop": ("decay", "eps"),
            "rmsprop_momentum": ("decay", "eps"),
            "adam": ("b1", "b2", "eps"),
            "adamw": ("b1", "b2", "eps"),
        }
        sources = {k: hg.field(k) for k in fields.get(name, ())}
        return getattr(hg, name)(cls.quartic, gradient=gradient, **sources)

    @pytest.mark.parametrize(
        "name", ["sgd", "nesterov", "rmsprop", "rmsprop_momentum", "adam", "adamw"]
    )
    def test_three_steps(self, name):
        steps = 3
        rule = self.rule(name)
        want, want_ema, want_mean = by_hand(name, lambda x: x**3, self.X, self.H, steps)
        x = jnp.asarray(self.X, jnp.float32)
        h = {k: jnp.float32(v) for k, v in self.H.items()}

        @jax.jit
        def ends(x, h):
            rules = (rule, hg.average(rule), hg.polyak_average(rule))
            return [hg.unroll(r, x, h, None, num_steps=steps).params for r in rules]

        for got, expected in zip(ends(x, h), (want, want_ema, want_mean), strict=True):
            np.testing.assert_allclose(got, expected, rtol=5e-6)

    @pytest.mark.parametrize(
        "name", ["sgd", "nesterov", "rmsprop", "rmsprop_momentum", "adam", "adamw"]
    )
    def test_a_replaced_gradient_is_used(self, name):
        h = {k: jnp.float32(v) for k, v in self.H.items()}
        x = jnp.asarray(self.X, jnp.float32)
        rule = self.rule(name, gradient=lambda loss: lambda params, hparams, batch, key: params**2)
        want = by_hand(name, lambda x: x**2, self.X, self.H, 1)[0]
        got = jax.jit(lambda: hg.unroll(rule, x, h, None, num_steps=1).params)()
        np.testing.assert_allclose(got, want, rtol=5e-6)


class TestHypergradients:
    """Every hyperparameter, in all its forms; the loss's own; and the start."""

    @pytest.mark.parametrize(("name", "adjoint"), list(table()))
    def test_agree_between_adjoints(self, name, adjoint):
        hparams, _ = hparams_of(name)
        end, want, _ = run(name, hg.Direct(), PARAMS, hparams)
        params, bars, info = run(name, adjoint, PARAMS, hparams)
        hg.check(info)
        assert_close(params, end, 1e-5)
        assert_close(bars, want, 1e-4)
        if adjoint == hg.Reversible():
            assert info.mismatches == 0
        if name != "from_optax":  # which has no use for the scale
            assert all(np.all(np.asarray(x) != 0) for x in jax.tree.leaves(want))


def two_steps(rule, hparams):
    """Parameters after two steps, without a scan: nothing to compile but single operations."""
    h = hparams | {"penalty": jnp.float32(0.03)}
    state = rule.init(PARAMS, h)
    for _ in range(2):
        state = rule.step(state, h, DATA, None)
    return rule.params(state)


class TestPrefixes:
    """A tree prefix means the same in every form."""

    @pytest.mark.parametrize("name", ["sgd", "nesterov", "rmsprop_momentum", "adamw"])
    def test_every_form_of_one_value(self, name):
        values = {"learning_rate": 0.05, "momentum": 0.75, "weight_decay": 0.5, "b2": 0.75}
        rule = getattr(hg, name)(loss, **({"b2": hg.field("b2")} if name == "adamw" else {}))
        forms = [
            lambda v: v,
            lambda v: {"w": v, "b": v},
            lambda v: jax.tree.map(lambda x: jnp.full(x.shape, v), PARAMS),
            lambda v: {"w": jnp.full((3, 1), v), "b": jnp.full((2,), v)},
        ]
        ends = [
            two_steps(rule, {k: form(jnp.float32(v)) for k, v in values.items()}) for form in forms
        ]
        for end in ends[1:]:
            assert_close(end, ends[0], 1e-7)

    def test_weight_decay_finer_or_coarser_than_the_learning_rate(self):
        rule = hg.adamw(loss)
        scalar = {"learning_rate": jnp.float32(0.05), "weight_decay": jnp.float32(0.5)}
        tree = {"w": jnp.full((3, 1), 1.0), "b": jnp.float32(1.0)}
        for name in scalar:
            end = two_steps(rule, scalar | {name: scaled(scalar[name], tree)})
            assert_close(end, two_steps(rule, scalar), 1e-7)

    def test_merge_refuses_two_unrelated_structures(self):
        with pytest.raises(ValueError, match="neither a prefix of the other; give one of them"):
            merge(jnp.multiply, learning_rate={"w": 1.0}, weight_decay={"b": 1.0})


class TestFiniteAtZero:
    """A gradient that is exactly zero, from the first step on: dead in x[0], flat in x[1]."""

    @staticmethod
    def partly_flat(params, hparams, batch, key):
        # x[0] never matters; x[1] starts where the slope, but not the curvature, is zero.
        return jnp.sum(hparams["curvature"] * params[1:] ** 2)

    @pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "rmsprop_momentum"])
    def test_hypergradients_are_finite_and_right(self, name):
        sources = {"weight_decay": 0.1} if name == "adamw" else {}
        sources |= {"momentum": 0.5} if name == "rmsprop_momentum" else {}
        rule = getattr(hg, name)(self.partly_flat, eps=hg.field("eps"), **sources)
        h = {"learning_rate": jnp.float32(0.1), "eps": jnp.float32(0.5), "curvature": jnp.ones(2)}
        start = jnp.array([1.0, 0.0, 2.0])
        adjoint = hg.Direct() if name == "rmsprop" else hg.Reversible()

        @jax.jit
        def after_one(start, h):
            out, pullback = hg.vjp(rule, start, h, None, num_steps=1, adjoint=adjoint)
            return out.params, *pullback(jnp.ones(3))

        end, bars, info = after_one(start, h)
        hg.check(info)
        kept = 1 - 0.01 * (name == "adamw")
        # At a zero gradient a step is -lr g / eps, and g = 2 x: 1 - 0.1 * 2 / 0.5.
        np.testing.assert_allclose(bars.params[:2], [kept, kept - 0.4], rtol=1e-5)
        np.testing.assert_allclose(end[:2], [kept, 0.0], rtol=1e-6)
        assert all(np.all(np.isfinite(np.asarray(x))) for x in jax.tree.leaves(bars))

    def test_optax_is_not(self):
        rule = hg.from_optax(lambda h: optax.adam(h["learning_rate"]), self.partly_flat)

        def end(start):
            h = {"learning_rate": 0.1, "curvature": jnp.ones(2)}
            return jnp.sum(hg.unroll(rule, start, h, None, num_steps=1).params)

        assert np.isnan(jax.jit(jax.grad(end))(jnp.array([1.0, 0.0, 2.0]))).any()

    def test_root(self):
        x = jnp.array([0.0, 4.0, 1e-30])
        np.testing.assert_allclose(root(x), [0.0, 2.0, 1e-15], rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(jax.grad(root))(x), [0.0, 0.25, 5e14], rtol=1e-6)
        assert jax.grad(jax.grad(root))(0.0) == 0


class TestSecondMomentSlot:
    """What `adam` says of gradients that are too small for the fixed point of v."""

    @staticmethod
    @functools.partial(jax.jit, static_argnames=("slot", "adjoint"))
    def one_step(slot, adjoint):
        rule = hg.adam(lambda p, h, b, k: 1e-7 * jnp.sum(p), learning_rate=0.1, second_moment=slot)
        return -hg.unroll(rule, jnp.zeros(()), {}, None, num_steps=1, adjoint=adjoint).params

    def test_small_gradients_need_a_finer_slot(self):
        coarse, fine = hg.Slot(fraction_bits=52), hg.Slot(fraction_bits=60)
        want = 0.1 * 1e-7 / (1e-7 + 1e-8)
        assert self.one_step(coarse, hg.Direct()) == pytest.approx(want, rel=1e-5)
        assert self.one_step(coarse, hg.Reversible()) == pytest.approx(0.1 * 1e-7 / 1e-8, rel=1e-5)
        assert self.one_step(fine, hg.Reversible()) == pytest.approx(want, rel=0.05)


class TestCorrection:
    @pytest.mark.parametrize("decay", [0.5, 0.9, 0.99, 0.999, 0.9999])
    def test_is_accurate_where_the_formula_cancels(self, decay):
        count = jnp.arange(500)
        got = np.asarray(correction(jnp.float32(decay), count), np.float64)
        want = 1 - np.float64(np.float32(decay)) ** (np.arange(500) + 1)
        np.testing.assert_allclose(got, want, rtol=5e-7)

    def test_derivative_at_a_decay_of_zero(self):
        slope = jax.vmap(jax.value_and_grad(correction), (None, 0))(jnp.float32(0), jnp.arange(3))
        np.testing.assert_array_equal(slope[0], [1, 1, 1])
        np.testing.assert_array_equal(slope[1], [-1, 0, 0])


class TestAverages:
    def test_averages_are_those_of_the_trajectory(self):
        h = {"penalty": jnp.float32(0.03), "learning_rate": jnp.float32(0.1)}
        ball = hg.heavy_ball(loss, momentum=0.8)
        path = [np.asarray(x) for x in (PARAMS["w"], *simulate(ball, h)["w"])]
        averages = simulate(hg.polyak_average(ball), h)["w"]
        means = np.cumsum(path, axis=0) / np.arange(1, 102)[:, None, None]
        np.testing.assert_allclose(averages, means[1:], rtol=0, atol=1e-6)
        follow = path[0]
        for x, got in zip(path[1:], simulate(hg.average(ball, decay=0.9), h)["w"], strict=True):
            follow = 0.9 * follow + 0.1 * x
            np.testing.assert_allclose(got, follow, rtol=0, atol=1e-6)

    def test_the_average_of_a_constant_is_that_constant(self):
        rule = hg.polyak_average(hg.sgd(lambda p, h, b, k: jnp.sum(p) * 0, learning_rate=0.1))
        x = jnp.float32(0.7)
        end = jax.jit(lambda: hg.unroll(rule, x, {}, None, num_steps=1000).params)()
        np.testing.assert_allclose(end, x, rtol=2e-6)

    def test_the_mean_of_a_run_costs_log2_of_its_length(self):
        bound = 401 ** (-1 / 400)  # one spilled row: the store is exactly full
        ball = hg.heavy_ball(lambda p, h, b, k: jnp.sum(p**2), learning_rate=0.1, momentum=1.0)
        rule = hg.polyak_average(ball, slot=hg.Slot(smallest_decay=bound))

        @jax.jit
        def back(x):
            _, pullback = hg.vjp(rule, x, {}, None, num_steps=400, adjoint=hg.Reversible())
            return pullback(jnp.ones(20))

        bars, info = back(jnp.linspace(0.1, 1.0, 20))
        assert hg.check(info).mismatches == 0
        np.testing.assert_allclose(
            info.run.entropy_per_step["average"] * 400, np.log2(401), rtol=1e-4
        )
        np.testing.assert_allclose(info.run.bits_per_step["average"] * 400, np.log2(401), atol=0.1)
        assert np.all(np.isfinite(bars.params))

    def test_twice_is_refused(self):
        once = hg.average(BALL, decay=0.9)
        with pytest.raises(ValueError, match="has an average of its parameters already"):
            hg.polyak_average(once)
        twice = hg.average(hg.average(hg.sgd(loss), decay=0.5), decay=0.5)
        with pytest.raises(ValueError, match="has an average of its parameters already"):
            hg.unroll(twice, PARAMS, hparams_of("sgd")[0], DATA, num_steps=1)


class TestFromOptax:
    @staticmethod
    def make_tx(hparams):
        return optax.chain(
            optax.clip_by_global_norm(hparams["clip"]),
            optax.scale_by_rms(decay=hparams["decay"], eps=1e-2),
            optax.add_decayed_weights(hparams["weight_decay"]),
            optax.scale_by_learning_rate(hparams["rate"]),
        )

    def hparams(self):
        return {
            "penalty": jnp.float32(0.03),
            "clip": jnp.float32(0.2),
            "decay": jnp.float32(0.9),
            "weight_decay": jnp.float32(0.1),
            "rate": 0.05 * PER_STEP,
        }

    def test_vmap_of_grad_of_a_schedule(self):
        rule = hg.from_optax(self.make_tx, loss)
        axes = {k: 0 if k == "rate" else None for k in self.hparams()}

        def end(h):
            out = hg.unroll(
                rule, PARAMS, h, DATA, num_steps=T, batch_fn=batch_fn, hparams_axes=axes
            )
            return jnp.sum(out.params["w"] * END_BAR["w"])

        two = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]), self.hparams())
        values, bars = jax.jit(jax.vmap(jax.value_and_grad(end)))(two)
        assert values.shape == (2,)
        assert bars["rate"].shape == (2, T)
        assert all(np.all(np.asarray(x) != 0) for x in jax.tree.leaves(bars))
        # One number of each against a central difference, in float32 of a smooth function.
        batched = jax.jit(jax.vmap(end))
        for name in ("clip", "decay", "weight_decay", "penalty"):
            step = 1e-2 * self.hparams()[name]
            steps = jnp.array([step, -step])
            h = jax.tree.map(lambda x: jnp.stack([x, x]), self.hparams())
            up, down = batched(h | {name: h[name] + steps})
            np.testing.assert_allclose(bars[name][0], (up - down) / (2 * step), rtol=2e-2)

    def test_shape_of_the_state_follows_the_parameters(self):
        rule = hg.from_optax(lambda h: optax.adam(h["rate"]), loss)
        state = rule.init(PARAMS, {"rate": jnp.float32(0.1)})
        assert isinstance(state, hg.OptaxState)
        assert jax.tree.structure(state.opt_state[0].mu) == jax.tree.structure(PARAMS)

    def test_something_else_than_a_transformation(self):
        rule = hg.from_optax(lambda h: h["rate"], loss)
        with pytest.raises(TypeError, match=r"make_tx returned .* must return an optax transform"):
            hg.unroll(rule, PARAMS, {"rate": 0.1}, DATA, num_steps=1)


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("sgd", "plain gradient descent keeps no velocity, so that undoing a step takes"),
            ("nesterov", "Nesterov's step adds the gradient at the old parameters"),
            (
                "rmsprop",
                r"without momentum moves .* \(rmsprop_momentum can be reversed\); use Chec",
            ),
            ("average_of_sgd", "plain gradient descent keeps no velocity"),
            ("from_optax", "an optax transformation does not say how its update is undone"),
        ],
    )
    def test_irreversible_rules_say_why(self, name, reason):
        hparams, axes = hparams_of(name)
        with pytest.raises(ValueError, match=f"this one cannot: .*{reason}"):
            hg.unroll(
                RULES[name][0],
                PARAMS,
                hparams,
                DATA,
                num_steps=T,
                hparams_axes=axes,
                adjoint=hg.Reversible(),
            )

    @pytest.mark.parametrize(
        ("name", "missing"),
        [
            ("sgd", "learning_rate"),
            ("nesterov", "momentum"),
            ("rmsprop", "learning_rate"),
            ("rmsprop_momentum", "momentum"),
            ("adam", "learning_rate"),
            ("adamw", "weight_decay"),
        ],
    )
    def test_a_missing_hyperparameter(self, name, missing):
        h = {"penalty": 0.1, "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.1}
        del h[missing]
        with pytest.raises(ValueError, match=rf"hparams has no '{missing}' .* pass {missing}= to"):
            hg.unroll(getattr(hg, name)(loss), PARAMS, h, DATA, num_steps=1)

    def test_a_missing_decay_of_an_average(self):
        with pytest.raises(ValueError, match="hparams has no 'average_decay'"):
            hg.unroll(hg.average(BALL), PARAMS, hparams_of("sgd")[0], DATA, num_steps=1)

    @pytest.mark.parametrize(
        "name", ["sgd", "nesterov", "rmsprop", "rmsprop_momentum", "adam", "adamw"]
    )
    def test_wrong_structures_and_shapes(self, name):
        h = {"penalty": 0.1, "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.1}
        rule = getattr(hg, name)(loss)
        with pytest.raises(ValueError, match="learning_rate is not a prefix of the parameters"):
            hg.unroll(rule, PARAMS, h | {"learning_rate": {"w": 0.1}}, DATA, num_steps=1)
        wrong = {"w": jnp.ones((2, 2)), "b": 0.1}
        with pytest.raises(ValueError, match=r"learning_rate has shape \(2, 2\) where a parameter"):
            hg.unroll(rule, PARAMS, h | {"learning_rate": wrong}, DATA, num_steps=1)

    def test_weight_decay_that_is_not_reversible(self):
        h = {"penalty": 0.1, "learning_rate": 0.5, "weight_decay": 2.0}
        with pytest.raises(ValueError, match="the decay of 'params' is 0; Reversible"):
            hg.unroll(hg.adamw(loss), PARAMS, h, DATA, num_steps=1, adjoint=hg.Reversible())

    def test_a_number_is_a_value_under_jit(self):
        @functools.partial(jax.jit, static_argnames="decay")
        def end(x, decay):
            rule = hg.heavy_ball(
                lambda p, h, b, k: jnp.sum(p**2), learning_rate=0.1, momentum=decay
            )
            return hg.unroll(rule, x, {}, None, num_steps=1, adjoint=hg.Reversible()).params

        np.testing.assert_allclose(end(jnp.ones(2), 0.5), [0.8, 0.8], rtol=1e-6)
        with pytest.raises(ValueError, match=r"the decay of 'velocity' is 1.5; Reversible"):
            end(jnp.ones(2), 1.5)

    def test_a_decay_that_closes_over_a_traced_value_is_left_to_run_time(self):
        def end(x, decay):
            rule = hg.heavy_ball(
                lambda p, h, b, k: jnp.sum(p**2), learning_rate=0.1, momentum=lambda h: decay
            )
            return hg.unroll(rule, x, {}, None, num_steps=1, adjoint=hg.Reversible()).params

        np.testing.assert_allclose(jax.jit(end)(jnp.ones(2), 0.5), [0.8, 0.8], rtol=1e-6)


@pytest.mark.parametrize("make", [hg.adam, hg.adamw, hg.rmsprop_momentum])
def test_gradients_far_below_eps_are_not_lost(make):
    """Second moments down to 1e-20 beside one of 1: a step divides by their roots."""
    scale = jnp.asarray([1.0, 1e-3, 1e-6, 1e-8, 1e-10])

    def tiny(params, hparams, batch, key):
        return jnp.sum(scale * jnp.cosh(params - 1.0))

    def end(hparams, adjoint):
        start = jnp.linspace(-0.5, 0.5, 5)
        out, pullback = hg.vjp(rule, start, hparams, None, num_steps=20, adjoint=adjoint)
        bars, info = pullback(jnp.linspace(1.0, 2.0, 5))
        return out.params, bars, info

    decay = "decay" if make is hg.rmsprop_momentum else "b2"
    rule = make(tiny, **{decay: hg.field("decay"), "eps": 1e-8})
    hparams = {"learning_rate": 0.01, "decay": 0.99, "momentum": 0.5, "weight_decay": 0.1}
    got, want = (jax.jit(end, static_argnums=1)(hparams, a) for a in ADJOINTS[::-3])
    hg.check(got[2])
    assert_close(got[0], want[0], 2e-5)
    assert_close(got[1].params, want[1].params, 1e-4)
    for name in ("learning_rate", "decay"):
        assert_close(got[1].hparams[name], want[1].hparams[name], 1e-4)


@pytest.mark.parametrize("form", ["per tensor", "per number"])
@pytest.mark.parametrize("make", [hg.heavy_ball, hg.adamw])
def test_decays_of_their_own_beside_scalars(make, form):
    """The step sees one vector where everything is scalar; a decay per tensor must prevent it."""
    weight = {"per tensor": 0.8, "per number": jnp.linspace(0.7, 0.9, 6).reshape(3, 2)}[form]
    hparams = {"penalty": 0.1, "learning_rate": 0.05, "decay": {"w": weight, "b": 0.6}}
    name = "momentum" if make is hg.heavy_ball else "weight_decay"
    rule = make(loss, **{name: hg.field("decay")})

    @functools.partial(jax.jit, static_argnums=0)
    def cotangents(adjoint):
        settings = {"num_steps": T, "batch_fn": batch_fn, "adjoint": adjoint}
        return hg.vjp(rule, PARAMS, hparams, DATA, **settings)[1](END_BAR)

    got, info = cotangents(hg.Reversible())
    hg.check(info)
    assert_close(got.hparams, cotangents(hg.Direct())[0].hparams, 1e-4)

"""Update rules beside optax and beside themselves by hand; averages; optax's rules among them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from tests.shared.rules import (
    BALL,
    DATA,
    END_BAR,
    PARAMS,
    PER_STEP,
    T,
    assert_close,
    batch_fn,
    hparams_of,
    loss,
    simulate,
)


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
            return [hg.unroll(hg.Run(r, num_steps=steps), x, h, None).params for r in rules]

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
        got = jax.jit(lambda: hg.unroll(hg.Run(rule, num_steps=1), x, h, None).params)()
        np.testing.assert_allclose(got, want, rtol=5e-6)


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
        end = jax.jit(lambda: hg.unroll(hg.Run(rule, num_steps=1000), x, {}, None).params)()
        np.testing.assert_allclose(end, x, rtol=2e-6)

    def test_the_mean_of_a_run_costs_log2_of_its_length(self):
        bound = 401 ** (-1 / 400)  # one spilled row: the store is exactly full
        ball = hg.heavy_ball(lambda p, h, b, k: jnp.sum(p**2), learning_rate=0.1, momentum=1.0)
        rule = hg.polyak_average(ball, slot=hg.Slot(smallest_decay=bound))

        @jax.jit
        def back(x):
            _, pullback = hg.vjp(hg.Run(rule, num_steps=400, adjoint=hg.Reversible()), x, {}, None)
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
            hg.unroll(hg.Run(twice, num_steps=1), PARAMS, hparams_of("sgd")[0], DATA)


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
                hg.Run(rule, num_steps=T, batch_fn=batch_fn, hparams_axes=axes), PARAMS, h, DATA
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
            hg.unroll(hg.Run(rule, num_steps=1), PARAMS, {"rate": 0.1}, DATA)

"""Gradient noise whose scale is a hyperparameter, and random modifiers in general."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.data import with_replacement

T = 6
KEY = np.array([0, 7], np.uint32)
SHAPES = {"b": (), "w": (2, 3)}
START = {"b": jnp.float32(0.2), "w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}
DATA = jnp.linspace(-1.0, 2.0, 10).reshape(5, 2)
NOISY = hg.modified(hg.backpropagation, hg.clip_by_norm(0.9), hg.add_noise())
RULES = {
    "momentum": hg.momentum,
    "heavy_ball": hg.heavy_ball,
    "adam": functools.partial(hg.adam, b1=hg.field("momentum"), b2=0.9, eps=1e-2),
}
SCALES = {
    "one": (jnp.float32(0.3), None),
    "per step": (jnp.linspace(0.5, 0.1, T), 0),
    "per tensor": ({"b": jnp.float32(0.1), "w": jnp.float32(0.4)}, None),
    "per number and step": (
        {"b": jnp.linspace(0.1, 0.3, T), "w": 0.1 + jnp.arange(T * 6.0).reshape(T, 2, 3) / 50},
        0,
    ),
}


def loss(params, hparams, batch, key):
    """Takes random numbers of its own, as dropout does."""
    mask = jax.random.bernoulli(key, 0.8, (3,))
    return jnp.mean(jnp.cosh(batch @ (params["w"] * mask) + params["b"]))


def objective(params, hparams, data):
    return jnp.sum(params["w"] ** 3) + params["b"]


def settings_of(kind):
    scale, axis = SCALES[kind]
    axes = {"learning_rate": None, "momentum": None, "noise_scale": axis}
    hparams = {"learning_rate": 0.2, "momentum": 0.7, "noise_scale": scale}
    return hparams, {"num_steps": T, "batch_fn": with_replacement(3), "hparams_axes": axes}


@pytest.mark.parametrize(
    ("name", "adjoint", "kind"),
    [
        ("heavy_ball", hg.Direct(), "one"),
        ("heavy_ball", hg.Checkpointed(), "per tensor"),
        ("heavy_ball", hg.ForwardMode(), "one"),
        ("momentum", hg.Reversible(), "per number and step"),
        pytest.param("adam", hg.Reversible(), "per tensor", marks=pytest.mark.slow),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, hg.Adjoint) else x,
)
def test_hypergradients_of_the_scale_agree_with_differences(name, adjoint, kind):
    hparams, settings = settings_of(kind)
    rule = RULES[name](loss, gradient=NOISY)
    run = hg.Run(rule, adjoint=adjoint, **settings)
    report = hg.check_hypergradient(objective, run, START, hparams, DATA, key=jnp.asarray(KEY))
    assert report.raise_if_wrong().worst.relative_error < 1e-8
    assert not any(e.is_unreliable for e in report.entries)
    of_scale = [e for e in report.entries if "noise_scale" in e.path]
    assert of_scale
    assert all(abs(e.reference) > 1e-5 for e in of_scale)


def test_long_runs_are_restored_bit_for_bit_and_equal_the_stored_ones():
    """In float32: the noise is the same on the way back, for seeds side by side too."""
    rule = hg.momentum(loss, gradient=NOISY)
    hparams = {"learning_rate": 0.05, "momentum": 0.9, "noise_scale": 0.3}

    def found(key, adjoint):
        run = hg.Run(rule, num_steps=300, batch_fn=with_replacement(3), adjoint=adjoint)
        return hg.value_and_hypergradient(objective, run, START, hparams, DATA, key=key)

    keys = jax.random.split(jax.random.key(1), 3)
    many = jax.jit(jax.vmap(lambda key: found(key, hg.Reversible())))(keys)
    assert bool(hg.check(many.info).is_restored.all())
    stored = jax.jit(lambda key: found(key, hg.Direct()))
    for i, key in enumerate(keys):
        one = stored(key)
        np.testing.assert_allclose(many.value[i], one.value, rtol=1e-5)
        for name, want in one.hparams.items():
            np.testing.assert_allclose(many.hparams[name][i], want, rtol=2e-4, err_msg=name)


def test_eta_and_gamma_of_an_annealed_variance():
    """Neelakantan et al. (2015): the variance eta / (1 + t)**gamma, differentiated in both."""
    rule = hg.momentum(lambda p, h, b, k: jnp.sum(jnp.cosh(p)), gradient=NOISY)

    with jax.enable_x64(True):

        @jax.jit
        def end(eta, gamma):
            scale = jnp.sqrt(eta / (1 + jnp.arange(T)) ** gamma)
            hparams, run = settings_of("per step")
            out = hg.unroll(
                hg.Run(
                    rule, num_steps=T, hparams_axes=run["hparams_axes"], adjoint=hg.Reversible()
                ),
                jnp.array([1.0, -0.5]),
                jax.tree.map(jnp.asarray, hparams | {"noise_scale": scale}),
                None,
                key=jnp.asarray(KEY),
            )
            return jnp.sum(out.params**3)

        at, step = np.array([0.3, 0.55]), 1e-3
        for i, bar in enumerate(jax.jit(jax.grad(end, (0, 1)))(*at)):
            weights = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
            moved = {j: end(*(at + j * step * (np.arange(2) == i))) for j in range(-4, 5)}
            want = sum(c * (moved[j] - moved[-j]) for j, c in weights.items()) / step
            assert abs(want) > 1e-3
            np.testing.assert_allclose(bar, want, rtol=1e-8)


SCALE = {"b": np.float32(0.5), "w": 0.25 * np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3)}
FIRST = hg.add_noise(lambda hparams: SCALE)


class TestDraws:
    """Of 20,000 steps from the same parameters."""

    NUM = 20_000

    @functools.cache  # noqa: B019
    def drawn(self, *modifiers):
        """Noise of every step, each tensor [NUM, *shape], and the loss's own random numbers."""

        def noisy_loss(params, hparams, batch, key):
            own = jax.random.normal(key, (2, 3))
            return jnp.sum(own * params["w"]) + params["b"] * jnp.sum(own)

        gradient = hg.modified(hg.backpropagation, *modifiers)(noisy_loss)
        keys = jax.random.split(jax.random.key(3), self.NUM)
        found = jax.jit(jax.vmap(lambda key: gradient(START, {}, None, key)))(keys)
        plain = jax.jit(jax.vmap(lambda key: jax.grad(noisy_loss)(START, {}, None, key)))(keys)
        return jax.tree.map(lambda a, b: np.asarray(a - b, np.float64), found, plain), plain["w"]

    def noise(self, *others):
        return self.drawn(FIRST, *others)

    def test_the_estimate_is_unbiased_and_has_the_scale_s_variance(self):
        found, _ = self.noise()
        for name, noise in found.items():
            s = np.broadcast_to(SCALE[name], noise.shape[1:])
            assert np.all(np.abs(noise.mean(0)) < 4 * s / np.sqrt(self.NUM))
            # The variance of a normal number's square is 2 s**4.
            error = np.abs((noise**2).mean(0) - s**2)
            assert np.all(error < 4 * s**2 * np.sqrt(2 / self.NUM))
            fourth = (noise**4).mean(0) / s**4
            assert np.all(np.abs(fourth - 3) < 4 * np.sqrt(96 / self.NUM))

    def test_nothing_is_drawn_twice(self):
        """Not within a step, nor from the loss's key, nor by two modifiers."""
        found, own = self.noise()
        second = self.noise(hg.add_noise(1.0))[0]["w"] - found["w"]
        rows = [found["b"][:, None], *(x.reshape(self.NUM, -1) for x in (found["w"], own, second))]
        correlations = np.corrcoef(np.concatenate(rows, axis=1), rowvar=False)
        others = correlations[~np.eye(len(correlations), dtype=bool)]
        # Four standard errors of the greatest of some 190 numbers are about six of one.
        assert np.abs(others).max() < 6 / np.sqrt(self.NUM)

    def test_modified_twice_is_modified_once_by_both(self):
        inner = hg.modified(hg.backpropagation, hg.add_noise(1.0))
        outer = hg.modified(inner, hg.clip_by_value(0.5), hg.add_noise(2.0))
        flat = hg.modified(
            hg.backpropagation, hg.add_noise(1.0), hg.clip_by_value(0.5), hg.add_noise(2.0)
        )
        square = lambda p, h, b, k: jnp.sum(p**2)  # noqa: E731
        given = (jnp.ones(3), {}, None, jax.random.key(0))
        np.testing.assert_array_equal(outer(square)(*given), flat(square)(*given))

    def test_the_order_of_clipping_and_noise(self):
        def of(*modifiers):
            square = lambda p, h, b, k: jnp.sum(p**2)  # noqa: E731
            provider = hg.modified(hg.backpropagation, *modifiers)
            return provider(square)(10 * jnp.ones(50), {}, None, jax.random.key(0))

        clipped = of(hg.add_noise(1.0), hg.clip_by_norm(1.0))
        np.testing.assert_allclose(jnp.linalg.norm(clipped), 1.0, rtol=1e-6)
        assert jnp.linalg.norm(of(hg.clip_by_norm(1.0), hg.add_noise(1.0))) > 4

    def test_half_precision_draws_in_float32(self):
        provider = hg.modified(hg.backpropagation, hg.add_noise(1.0))
        key, constant = jax.random.key(0), lambda p, h, b, k: jnp.sum(0 * p)
        wide, narrow = (
            provider(constant)(jnp.ones(50, dtype), {}, None, key)
            for dtype in (jnp.float32, jnp.bfloat16)
        )
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


class TestRefusals:
    def run(self, scale=None, key: Any = KEY, hparams=None):
        modifier = hg.add_noise() if scale is None else hg.add_noise(scale)
        rule = hg.sgd(
            lambda params, hparams, batch, key: jnp.sum(params["w"] ** 2) + params["b"],
            gradient=hg.modified(hg.backpropagation, modifier),
        )
        given = {"learning_rate": 0.1} | (hparams or {})
        return hg.unroll(
            hg.Run(rule, num_steps=2),
            START,
            given,
            None,
            key=None if key is None else jnp.asarray(key),
        )

    @pytest.mark.parametrize("scale", [-0.1, float("nan"), np.float32(-1), -jnp.ones(2)])
    def test_a_scale_that_is_no_deviation(self, scale):
        with pytest.raises(ValueError, match=r"add_noise has the scale .*; it must be at least 0"):
            hg.add_noise(scale)

    def test_no_key(self):
        with pytest.raises(ValueError, match=r"key is None, .* add_noise, draws by it: pass key="):
            self.run(0.1, key=None)

    def test_no_scale(self):
        with pytest.raises(ValueError, match=r"no 'noise_scale' .* bound=, strength= or scale="):
            self.run()

    def test_a_scale_of_another_structure(self):
        with pytest.raises(ValueError, match="noise_scale is not a prefix of the parameters"):
            self.run(hparams={"noise_scale": {"v": 0.1}})
        with pytest.raises(ValueError, match="noise_scale has shape"):
            self.run(hparams={"noise_scale": {"b": 0.1, "w": jnp.ones(4)}})
        with pytest.raises(TypeError, match=r"a hyperparameter of the rule is '0\.1'"):
            self.run(lambda hparams: "0.1")

    def test_a_random_modifier_of_other_arguments(self):
        three: Any = lambda gradient, params, hparams: gradient  # noqa: E731
        with pytest.raises(TypeError, match=r"modify takes .* called as modify\(gradient, params"):
            hg.modified(hg.backpropagation, hg.RandomModifier(three))
        with pytest.raises(TypeError, match=r"modify is 0.5, but is called as"):
            hg.modified(hg.backpropagation, hg.RandomModifier(0.5))  # pyright: ignore

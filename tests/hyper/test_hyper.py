"""Sharing maps, parametrizations, penalties and the rescaling, by their values."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax import hyper

PARAMS = {
    "conv": {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)},
    "dense": {"kernel": jnp.ones((5, 6)), "bias": jnp.ones(6)},
    "gain": jnp.float32(1),
}
SHAPES = {  # kernel and bias of the convolution, of the dense layer, the scalar
    "per_tensor": [(), (), (), (), ()],
    "per_output_unit": [(1, 1, 1, 4), (4,), (1, 6), (6,), ()],
    "per_input_unit": [(1, 1, 2, 1), (), (5, 1), (), ()],
    "per_filter": [(1, 1, 2, 4), (4,), (1, 6), (6,), ()],
    "per_parameter": [(3, 3, 2, 4), (4,), (5, 6), (6,), ()],
}


def in_order(tree):
    conv, dense = tree["conv"], tree["dense"]
    return [conv["kernel"], conv["bias"], dense["kernel"], dense["bias"], tree["gain"]]


class TestSharing:
    @pytest.mark.parametrize("name", SHAPES)
    def test_shapes_and_the_transpose(self, name):
        """What shares a value adds up its cotangents, and only that."""
        sharing = getattr(hyper, name)()
        small = sharing.init(PARAMS, 0.25)
        assert [x.shape for x in in_order(small)] == SHAPES[name]
        keys = iter(jax.random.split(jax.random.key(0), 10))
        small = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), small)
        full, pull = jax.vjp(lambda s: sharing.expand(s, PARAMS), small)
        bars = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), PARAMS)
        (small_bars,) = pull(bars)
        for s, x, bar, found in zip(*map(in_order, (small, full, bars, small_bars)), strict=True):
            np.testing.assert_array_equal(x, np.broadcast_to(s, x.shape))
            axes = tuple(i for i in range(bar.ndim) if s.ndim == 0 or s.shape[i] == 1)
            want = np.sum(np.asarray(bar), axis=axes).reshape(s.shape)
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)

    def test_one_for_all(self):
        sharing = hyper.one_for_all()
        small = sharing.init(PARAMS, 0.5)
        assert small.shape == ()
        total = jax.grad(lambda s: sum(x.sum() for x in in_order(sharing.expand(s, PARAMS))))(small)
        assert total == 72 + 4 + 30 + 6 + 1

    def test_a_function_of_ones_own(self):
        rows = hyper.by_shape(lambda shape: shape[:1] + (1,) * (len(shape) - 1))
        small = rows.init({"w": jnp.ones((2, 3))}, 0.0)
        full = rows.expand({"w": jnp.array([[1.0], [2.0]])}, {"w": jnp.ones((2, 3))})
        assert small["w"].shape == (2, 1)
        np.testing.assert_array_equal(full["w"], [[1, 1, 1], [2, 2, 2]])

    def test_dtypes_are_those_of_the_parameters(self):
        params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
        for sharing in (hyper.per_tensor(), hyper.one_for_all()):
            assert sharing.expand(sharing.init(params, 0.5), params)["w"].dtype == jnp.bfloat16

    def test_windows(self):
        values = {"rate": jnp.arange(3.0), "l2": jnp.arange(6.0).reshape(3, 2)}
        full = hyper.over_windows(values, 7)
        owner = [0, 0, 0, 1, 1, 2, 2]
        np.testing.assert_array_equal(full["rate"], owner)
        np.testing.assert_array_equal(full["l2"], np.asarray(values["l2"])[owner])
        _, pull = jax.vjp(lambda v: hyper.over_windows(v, 7), values)
        (bars,) = pull(jax.tree.map(jnp.ones_like, full))
        np.testing.assert_array_equal(bars["rate"], [3, 2, 2])
        np.testing.assert_array_equal(hyper.over_windows(jnp.arange(4.0), 4), np.arange(4))

    def test_windows_of_long_runs(self):
        """Of which T * W has more than 32 bits."""
        num_steps = 100_000
        values = np.arange(num_steps, dtype=np.float32)
        np.testing.assert_array_equal(hyper.over_windows(values, num_steps), values)

    def test_hypergradients_of_windows_and_units(self):
        """Per window of steps and per output unit at once, against the sums of the full ones."""
        params = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
        units = hyper.per_output_unit()

        def loss(params, hparams, batch, key):
            return hyper.l2(params, 1.0) + jnp.sum(jnp.sin(params["w"]) * params["b"])

        rule = hg.heavy_ball(loss, momentum=0.5)

        def end(rates):  # a tree like params with an axis of steps
            hparams = {"learning_rate": rates}
            run = hg.Run(rule, hparams_axes=0, num_steps=8, adjoint=hg.Reversible())
            out = hg.unroll(run, params, hparams, None)
            return jnp.sum(out.params["w"] ** 2) + jnp.sum(out.params["b"])

        small = jax.tree.map(lambda x: 0.05 * jnp.ones((2, *x.shape)), units.init(params, 1.0))
        full = jax.vmap(units.expand, (0, None))(hyper.over_windows(small, 8), params)
        got = jax.jit(jax.grad(lambda s: end(hyper.over_windows(s, 8))))(small)
        each = jax.jit(jax.grad(end))(full)
        np.testing.assert_allclose(
            got["w"], each["w"].reshape(2, 4, 2, 3).sum((1, 2))[:, None], rtol=1e-5
        )
        np.testing.assert_allclose(got["b"], each["b"].reshape(2, 4, 3).sum(1), rtol=1e-5)

    def test_what_does_not_fit(self):
        with pytest.raises(ValueError, match=r"shape_map makes \(2,\) of params\['w'\]"):
            hyper.by_shape(lambda shape: (2,)).init({"w": jnp.ones((2, 3))}, 0.0)
        with pytest.raises(ValueError, match="a sharing map expands a tree of shapes"):
            hyper.per_tensor().expand({"w": jnp.ones(3)}, {"w": jnp.ones(3)})
        with pytest.raises(ValueError, match="a sharing map expands a tree of shapes"):
            hyper.per_tensor().expand({"v": jnp.float32(1)}, {"w": jnp.ones(3)})
        for wrong in (jnp.ones(3), {"w": jnp.float32(1)}):
            with pytest.raises(ValueError, match="one_for_all expands one scalar"):
                hyper.one_for_all().expand(wrong, {"w": jnp.ones(3)})
        for wrong in (jnp.float32(1), jnp.ones(9), jnp.ones((0, 2))):
            with pytest.raises(ValueError, match=r"values\['rate'\] has the shape"):
                hyper.over_windows({"rate": wrong}, 8)


class TestParametrizations:
    CASES = (
        ("log", np.exp, [-3.0, 0.0, 2.0], [0.0, -1.0, np.inf]),
        ("log10", lambda u: 10.0**u, [-3.0, 0.0, 2.0], [0.0, -1.0]),
        ("logit", lambda u: 1 / (1 + np.exp(-u)), [-3.0, 0.0, 2.0], [0.0, 1.0, -0.1, 1.1]),
        ("softplus", lambda u: np.log1p(np.exp(u)), [-8.0, 0.0, 40.0], [0.0, -1.0]),
        ("one_minus_exp", lambda u: 1 - np.exp(u), [-8.0, -0.5, 2.0], [1.0, 2.0]),
    )

    @pytest.mark.parametrize(
        ("name", "formula", "points", "outside"), CASES, ids=lambda x: str(x)[:9]
    )
    def test_values_inverses_and_ranges(self, name, formula, points, outside):
        chosen = getattr(hyper, name)
        u = jnp.array(points)
        np.testing.assert_allclose(chosen.to_value(u), formula(np.array(points)), rtol=2e-6)
        with jax.enable_x64(True):
            u = jnp.asarray(points, jnp.float64)
            np.testing.assert_allclose(chosen.from_value(chosen.to_value(u)), u, rtol=1e-9)
            np.testing.assert_allclose(chosen.to_value(u), formula(np.array(points)), rtol=1e-13)
        for x in [*outside, np.nan]:
            with pytest.raises(ValueError, match=rf"\['rate'\] is .*, but {name} has values in"):
                chosen.from_value({"rate": x})
            assert np.isnan(jax.jit(chosen.from_value)(x))

    def test_trees(self):
        u = hyper.logit.from_value({"a": 0.25, "b": jnp.array([0.5, 0.75])})
        back = hyper.logit.to_value(u)
        np.testing.assert_allclose(back["a"], 0.25, rtol=1e-6)
        np.testing.assert_allclose(back["b"], [0.5, 0.75], rtol=1e-6)


class TestPenalties:
    def test_values(self):
        params = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([4.0, -1.0])}
        per_unit = {"w": jnp.array([[0.5, 2.0]]), "b": jnp.array([1.0, 0.0])}
        np.testing.assert_allclose(hyper.l2(params, 2.0), 14.25 + 17.0)
        np.testing.assert_allclose(hyper.l2(params, per_unit), (5 + 8.5) / 2 + 8.0)
        np.testing.assert_allclose(hyper.l1(params, per_unit), 2 + 5 + 4)
        with pytest.raises(ValueError, match="coefficients has shape"):
            hyper.l2(params, {"w": jnp.ones(3), "b": 1.0})

    @pytest.mark.parametrize("penalty", [hyper.l1, hyper.l2])
    @pytest.mark.parametrize(
        ("params", "coefficients", "error", "message"),
        [
            (jnp.ones(2), "a", TypeError, "coefficients is 'a'; it must be a number or an array"),
            ({"w": jnp.ones(2)}, {"w": None}, ValueError, r"has None where params\['w'\] is one"),
            ({"w": jnp.ones(2)}, {"w": "a"}, TypeError, r"coefficients\['w'\] is 'a'; it must be"),
            ({"w": jnp.ones(2)}, [1.0], ValueError, "it has a list where params is a dict"),
            (jnp.ones(2), lambda h: h, TypeError, "coefficients is .*; it must be a number or"),
            (1.0, jnp.ones(2), ValueError, r"coefficients has shape \(2,\) where a parameter has"),
            ("a", 1.0, TypeError, "params is 'a', not an array of floats"),
            ({}, 1.0, ValueError, "params is an empty tree"),
        ],
    )
    def test_what_is_no_penalty(self, penalty, params, coefficients, error, message):
        with pytest.raises(error, match=message):
            penalty(params, coefficients)

    def test_weighted_mean(self):
        losses, weights = jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 0.5, 0.0])
        value, bars = jax.value_and_grad(hyper.weighted_mean, 1)(losses, weights)
        np.testing.assert_allclose(value, 2 / 3)
        np.testing.assert_allclose(bars, losses / 3)
        with pytest.raises(ValueError, match="pass the weights of the batch's examples"):
            hyper.weighted_mean(losses, jnp.ones(4))
        with pytest.raises(TypeError, match=r"losses is a list; it must be an array \[B\]"):
            hyper.weighted_mean(*cast(Any, ([1.0, 2.0], [0.5, 1.0])))
        with pytest.raises(TypeError, match=r"weights is a NoneType; it must be an array \[B\]"):
            hyper.weighted_mean(losses, cast(Any, None))


class TestRescaling:
    def test_training_in_z_is_training_with_scaled_rates(self):
        """With w = exp(s) z, descent in z at the rate r is descent in w at r exp(2 s)."""
        s = {"w": jnp.array([-0.5, 0.0, 0.5]), "b": jnp.float32(0.25)}
        z = {"w": jnp.array([1.0, -1.0, 2.0]), "b": jnp.float32(0.5)}

        def loss(params, hparams, batch, key):
            return jnp.sum(jnp.cosh(params["w"])) + params["b"] ** 2

        in_z = hg.sgd(hyper.rescaled(loss, log_penalty=None), learning_rate=0.1)
        found = hg.unroll(hg.Run(in_z, num_steps=5), z, {"log_scale": s}, None).params
        rates = jax.tree.map(lambda x: 0.1 * jnp.exp(2 * x), s)
        in_w = hg.sgd(loss, learning_rate=lambda hparams: rates)
        want = hg.unroll(hg.Run(in_w, num_steps=5), hyper.weights_of(z, s), {}, None).params
        for a, b in zip(
            jax.tree.leaves(hyper.weights_of(found, s)), jax.tree.leaves(want), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=2e-6)

    def test_hypergradients_of_scales_and_penalties(self):
        """Reversible, in float64, against central differences."""

        def loss(params, hparams, batch, key):
            return jnp.sum(jnp.cosh(params))

        rule = hg.momentum(hyper.rescaled(loss), learning_rate=0.1, momentum=0.8)

        with jax.enable_x64(True):
            z = jnp.array([1.0, -1.0])

            @jax.jit
            def end(hparams):
                run = hg.Run(rule, num_steps=6, adjoint=hg.Reversible())
                out = hg.unroll(run, z, hparams, None)
                return jnp.sum(hyper.weights_of(out.params, hparams["log_scale"]) ** 3)

            h = {"log_scale": jnp.array([-0.5, 0.3]), "log_penalty": jnp.array(-2.0)}
            got = jax.jit(jax.grad(end))(h)
            for name, move in (
                ("log_scale", np.array([1e-5, 0])),
                ("log_scale", np.array([0, 1e-5])),
                ("log_penalty", np.array(1e-5)),
            ):
                ends = [end(h | {name: h[name] + sign * move}) for sign in (1, -1)]
                want = (ends[0] - ends[1]) / 2e-5
                np.testing.assert_allclose(np.sum(got[name] * move) / 1e-5, want, rtol=1e-7)

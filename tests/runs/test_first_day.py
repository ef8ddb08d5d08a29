"""What goes wrong on a first day is refused in words that hold the way out, before any compute."""

import dataclasses
import functools
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.data import minibatches
from tests.shared.runs import run_with

HPARAMS = {"learning_rate": 0.1, "momentum": 0.5}
KEY = jax.random.key(0)


def square(params, hparams, batch, key):
    return jnp.sum((params - 1.0) ** 2) / 2


def run(rule, hparams=HPARAMS, params=None, data=None, num_steps=3, **settings):
    params = jnp.zeros(2) if params is None else params
    return run_with(hg.unroll, rule, params, hparams, data, num_steps=num_steps, **settings)


def quartic(params, hparams, batch, key):
    return jnp.sum((params - 1.0) ** 4) + jnp.sum(jnp.cosh(params))


def refused(error, *words):
    """Expects an error of one sentence that has these words, in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(word) for word in words))


class TestSchedulesAsFunctions:
    WAY_OUT = "jnp.array([schedule(t) for t in range(num_steps)]), with 0 for it in hparams_axes"

    @pytest.mark.parametrize("make", [hg.momentum, hg.adam, hg.sgd])
    def test_of_optax(self, make):
        rule = make(square, learning_rate=optax.cosine_decay_schedule(0.1, 10))
        name = "optax's cosine_decay_schedule, a function of the step, but is called with hparams"
        with refused(TypeError, name, self.WAY_OUT):
            run(rule)

    def test_of_optax_where_hparams_are_one_array(self):
        """Which it takes for the step, and computes something of."""
        rule = hg.sgd(square, learning_rate=optax.cosine_decay_schedule(0.1, 10))
        with refused(TypeError, "cosine_decay_schedule", self.WAY_OUT):
            run(rule, jnp.float32(0.1))

    @pytest.mark.parametrize(
        "schedule",
        [
            lambda t: 0.1 * 0.9**t,
            lambda t: jnp.where(t < 5, 0.1, 0.01),
            lambda t: 0.1 if t < 5 else 0.01,
            lambda t: [0.1, 0.05, 0.01][t],
            lambda t: np.array([0.1, 0.05, 0.01])[t],
            lambda t: 0.1 / t.astype(float),
        ],
    )
    def test_of_one_s_own(self, schedule):
        rule = hg.momentum(square, learning_rate=schedule)
        words = ["<lambda> of test_first_day.py:", "with hparams (a dict of ['learning_rate', 'mom"]
        with refused(TypeError, *words, "not with the step, and failed", self.WAY_OUT):
            run(rule)

    def test_of_any_argument_of_a_rule(self):
        def rising(t):
            return jnp.minimum(0.9, t / 10)

        for name, rule in (
            ("b1", hg.adam(square, learning_rate=0.1, b1=rising)),
            ("eps", hg.adam(square, learning_rate=0.1, eps=rising)),
            ("momentum", hg.heavy_ball(square, learning_rate=0.1, momentum=rising)),
        ):
            with refused(TypeError, f"{name} of the rule is ", "rising", "not with the step"):
                run(rule)

    def test_of_hparams_and_the_step(self):
        with refused(TypeError, "learning_rate takes (hparams, t), but is called", self.WAY_OUT):
            hg.momentum(square, learning_rate=cast(Any, lambda hparams, t: 0.1))

    def test_that_modifiers_read(self):
        gradient = hg.modified(hg.backpropagation, hg.add_weight_decay(lambda t: 0.1 * 0.9**t))
        with refused(TypeError, "<lambda> of test_first_day.py:", self.WAY_OUT):
            run(hg.sgd(square, gradient=gradient))

    def test_a_missing_entry_names_the_function(self):
        with refused(TypeError, "<lambda> of test_first_day.py:", "KeyError: 'rate'"):
            run(hg.sgd(square, learning_rate=lambda hparams: hparams["rate"]))

    def test_branching_on_values_is_said_to_be_that(self):
        with refused(TypeError, "asks a traced array for its value"):
            run(hg.sgd(square, learning_rate=lambda h: 0.1 if h["learning_rate"] > 1 else 0.2))

    def test_the_way_out_is_one(self):
        schedule = optax.cosine_decay_schedule(0.1, 10)
        rates = jnp.array([schedule(t) for t in range(10)])
        ours = run(
            hg.sgd(square),
            {"learning_rate": rates},
            num_steps=10,
            hparams_axes={"learning_rate": 0},
        )
        theirs = run(hg.from_optax(lambda hparams: optax.sgd(schedule), square), {}, num_steps=10)
        np.testing.assert_allclose(ours.params, theirs.params, rtol=1e-6)


RATES = {"learning_rate": jnp.full(7, 0.1), "momentum": 0.5}


class TestForgottenAxes:
    def test_are_spoken_of_first(self):
        start = {"w": jnp.zeros(3), "b": jnp.zeros(())}

        def loss(params, hparams, batch, key):
            return jnp.sum((params["w"] - 1.0) ** 2) + params["b"] ** 2

        with refused(
            ValueError,
            "hparams_axes does not name hparams['learning_rate'], which has a row for each of ",
            "pass hparams_axes={'learning_rate': 0, 'momentum': None}",
        ) as caught:
            run(hg.momentum(loss), RATES, start, num_steps=7)
        assert str(caught.value).startswith("hparams_axes")

    def test_of_two_schedules(self):
        both = {"learning_rate": jnp.full(7, 0.1), "momentum": jnp.full(7, 0.5)}
        names = "hparams_axes does not name hparams['learning_rate'] and hparams['momentum'], which"
        with refused(ValueError, names, "{'learning_rate': 0, 'momentum': 0}"):
            run(hg.momentum(square), both, num_steps=7)
        axes = {"learning_rate": 0, "momentum": 0}
        assert run(hg.momentum(square), both, num_steps=7, hparams_axes=axes).params.shape == (2,)

    def test_of_fit(self):
        with refused(
            ValueError, "hparams_axes does not name hparams['learning_rate']", "each of th"
        ):
            hg.fit(
                hg.momentum(square),
                jnp.zeros(2),
                {"learning_rate": jnp.full(6, 0.1), "momentum": 0.5},
                jnp.zeros((6, 1)),
                num_epochs=2,
                batch_fn=minibatches(2),
            )

    def test_a_shape_that_is_no_schedule_keeps_its_words(self):
        with refused(ValueError, "learning_rate has shape (3,) where a parameter has shape (2,)"):
            run(hg.momentum(square), RATES | {"learning_rate": jnp.ones(3)}, num_steps=7)


def noisy(params, hparams, batch, key):
    return jnp.sum((params - jax.random.normal(key, params.shape)) ** 2)


def dropped(params, hparams, batch, key):
    first, _ = jax.random.split(key)
    return jnp.sum((params * jax.random.bernoulli(first, 0.5, params.shape)) ** 2)


class TestForgottenKeys:
    @pytest.mark.parametrize("loss", [noisy, dropped])
    def test_of_the_loss(self, loss):
        sentence = (
            "key is None, but the loss draws random numbers by it: pass key=jax.random.key(0)."
        )
        with pytest.raises(ValueError) as caught:
            run(hg.momentum(loss))
        assert str(caught.value) == sentence
        assert run(hg.momentum(loss), key=KEY).params.shape == (2,)

    def test_of_batches(self):
        with refused(ValueError, "key is None, but batch_fn draws random numbers by it"):
            run(hg.momentum(square), batch_fn=lambda data, t, key: jax.random.normal(key, (2,)))

    def test_of_a_hypergradient_and_of_fit(self):
        with refused(ValueError, "key is None, but the loss draws"):
            hg.value_and_hypergradient(
                lambda params, hparams, data: jnp.sum(params),
                hg.Run(hg.momentum(noisy), num_steps=2),
                jnp.zeros(2),
                HPARAMS,
                None,
            )
        with refused(ValueError, "key is None, but the loss draws"):
            hg.fit(hg.momentum(noisy), jnp.zeros(2), HPARAMS, None, num_epochs=1, steps_per_epoch=2)

    def test_what_fails_with_a_key_too_keeps_its_words(self):
        def wrong(params, hparams, batch, key):
            return jnp.sum(params @ jnp.ones(3)) + jax.random.normal(key)

        with pytest.raises(TypeError, match="dot_general requires contracting dimensions"):
            run(hg.momentum(wrong))


class TestLeaves:
    DATA = "take it out, and pass it as a part of data, or let the loss close over it"

    @pytest.mark.parametrize(
        ("leaf", "words"),
        [
            (jnp.array([True, False]), ["dtype bool, a mask or flag, which is not trained", DATA]),
            (True, ["dtype bool, a mask or flag", DATA]),
            (jnp.arange(2), ["dtype int32", "convert it to float32 if it is a weight", DATA]),
            (jax.random.key(0), ["a PRNG key, which is not trained; take it out, and pass key="]),
            (jax.random.PRNGKey(0), ["dtype uint32", "if it is a PRNG key, pass it as key="]),
            (jnp.ones(2, complex), ["complex64", "two leaves", "with jax.lax.complex"]),
        ],
        ids=["mask", "flag", "index", "key", "raw key", "complex"],
    )
    def test_that_are_no_floats(self, leaf, words):
        with refused(TypeError, "params['x'] has ", *words):
            run(hg.momentum(square), params={"w": jnp.ones(2), "x": leaf})
        if jnp.result_type(leaf) != jnp.int32:
            with pytest.raises(TypeError) as caught:
                run(hg.momentum(square), HPARAMS | {"x": leaf})
            assert "hparams['x'] has dtype" in str(caught.value)
            assert "convert it to float32" not in str(caught.value)

    def test_classes_that_jax_does_not_know(self):
        @dataclasses.dataclass
        class Layer:
            weight: jax.Array

        for given in (Layer(jnp.ones(3)), {"first": Layer(jnp.ones(3))}):
            with refused(TypeError, "of the class Layer", "tree_util.register_dataclass(Layer)"):
                run(hg.momentum(square), params=given)

    def test_masks_in_data_are_the_way_out(self):
        def masked(params, hparams, batch, key):
            return jnp.sum(jnp.where(batch["mask"], params - 1.0, 0.0) ** 2)

        out = run(hg.momentum(masked), data={"mask": jnp.array([True, False])})
        assert out.params[0] > 0
        assert out.params[1] == 0

    def test_two_real_leaves_are_the_way_out(self):
        def loss(params, hparams, batch, key):
            return jnp.abs(jax.lax.complex(params["re"], params["im"]) - (1.0 + 2.0j)) ** 2

        start = {"re": jnp.float32(0), "im": jnp.float32(0)}
        found = run(hg.heavy_ball(loss), params=start, num_steps=100).params
        np.testing.assert_allclose([found["re"], found["im"]], [1, 2], rtol=1e-4)


def halved(params, hparams, batch, key):
    start = hparams["scale"] * jnp.sum(params**2)
    return jax.lax.while_loop(lambda x: x > 1.0, lambda x: x / 2, start)


def in_a_branch(params, hparams, batch, key):
    return jax.lax.cond(params[0] > -9, lambda p: halved(p, hparams, batch, key), jnp.sum, params)


def in_a_scan(params, hparams, batch, key):
    def body(total, x):
        return total + halved(params * x, hparams, batch, key), None

    return jax.lax.scan(body, 0.0, jnp.array([1.0, 2.0]))[0]


def counted(params, hparams, batch, key):
    steps = jnp.int32(2.0 + params[0])
    return jax.lax.fori_loop(0, steps, lambda i, x: x / 2, jnp.sum(params**2))


class TestLoops:
    HINT = ("lax.while_loop", "gradient=hg.forward_gradient()", "adjoint=hg.ForwardMode()")

    @pytest.mark.parametrize("loss", [halved, counted, in_a_branch])
    def test_in_a_loss_that_is_backpropagated(self, loss):
        with refused(ValueError, *self.HINT):
            run(hg.momentum(loss), HPARAMS | {"scale": 3.0})

    @staticmethod
    def end(scale, adjoint, loss=halved, name="scale", **settings):
        rule = hg.momentum(loss, gradient=hg.forward_gradient(**settings))
        hparams = HPARAMS | {"scale": 3.0} | {name: scale}
        out = run(rule, hparams, jnp.array([0.5, -1.0]), key=KEY, adjoint=adjoint)
        return jnp.sum(out.params**2)

    @pytest.mark.parametrize(
        "adjoint",
        [
            hg.Direct(),
            hg.Checkpointed(),
            hg.Reversible(),
            hg.Waypoints(2),
            hg.DrMAD(),
            hg.Truncated(2),
        ],
        ids=lambda adjoint: type(adjoint).__name__,
    )
    def test_under_jax_grad_of_a_reverse_adjoint(self, adjoint):
        with refused(ValueError, *self.HINT):
            jax.eval_shape(jax.grad(lambda scale: self.end(scale, adjoint)), 3.0)

    @pytest.mark.parametrize("loss", [in_a_branch, in_a_scan, jax.jit(halved)])
    def test_at_any_depth(self, loss):
        with refused(ValueError, *self.HINT):
            jax.jit(jax.grad(self.end), static_argnums=(1, 2))(3.0, hg.Direct(), loss)

    @pytest.mark.parametrize("settings", [{"num_directions": 2}, {"is_joint": False}])
    def test_under_several_directions(self, settings):
        with refused(ValueError, *self.HINT):
            jax.grad(lambda s: self.end(s, hg.Direct(), **settings))(3.0)

    @pytest.mark.parametrize("settings", [{}, {"num_directions": 2}, {"is_joint": False}])
    def test_the_way_out_is_one(self, settings):
        def end(scale, adjoint):
            return self.end(scale, adjoint, **settings)

        bar = jax.jit(jax.vmap(jax.grad(lambda s: end(s, hg.ForwardMode()))))(jnp.array([3.0]))[0]
        tangent = jax.jvp(lambda s: end(s, hg.Direct()), (3.0,), (1.0,))[1]
        np.testing.assert_allclose(bar, tangent, rtol=1e-5)
        ends = [end(3.0 + step, hg.Direct()) for step in (1e-2, -1e-2)]
        np.testing.assert_allclose(bar, (ends[0] - ends[1]) / 2e-2, rtol=1e-2)
        assert abs(bar) > 1e-2

    def test_no_word_where_no_cotangent_reaches_the_loop(self):
        def loss(params, hparams, batch, key):
            turns = jax.lax.while_loop(lambda x: x > 1.0, lambda x: x / 2, hparams["scale"])
            return turns * jnp.sum((params - 1.0) ** 2)

        bars = [
            jax.grad(self.end)(0.5, adjoint, loss, "momentum")
            for adjoint in (hg.Direct(), hg.ForwardMode())
        ]
        np.testing.assert_allclose(*bars, rtol=1e-5)
        assert bars[0] != 0


plateau = functools.partial(optax.contrib.reduce_on_plateau, patience=1)
zoom, backtracking = optax.scale_by_zoom_linesearch, optax.scale_by_backtracking_linesearch
ASCENT, SEARCHED = optax.sgd(0.05), ["value", "grad", "value_fn"]


class TestOptax:
    def test_a_raw_transformation_as_the_rule(self):
        for raw in (optax.adam(0.1), optax.identity(), optax.MultiSteps(optax.sgd(0.1), 2)):
            with refused(
                TypeError, "transition is an optax transformation", "hg.from_optax(lambda"
            ):
                run(raw)

    def test_projections_without_their_bounds(self):
        projections: Any = optax.projections
        with refused(
            TypeError, "projection takes (tree", "functools.partial(optax.projections.pro"
        ):
            hg.projected(optax.sgd(0.1), projections.projection_box)
        bounded = functools.partial(projections.projection_box, lower=0.0, upper=1.0)
        optimizer = hg.projected(optax.sgd(1.0), bounded)
        start = jnp.array([0.5, 0.5])
        update, _ = optimizer.update(jnp.array([1.0, -1.0]), optimizer.init(start), start)
        np.testing.assert_array_equal(optax.apply_updates(start, update), [0.0, 1.0])

    def test_a_function_of_optax_that_makes_one(self):
        with refused(TypeError, "make_tx is optax's adam", "lambda hparams: optax.adam(hparams["):
            hg.from_optax(optax.adam, square)

    @pytest.mark.parametrize(
        ("make_tx", "names"),
        [
            (lambda h: optax.polyak_sgd(max_learning_rate=h["rate"]), ["value"]),
            (lambda h: optax.contrib.momo_adam(h["rate"]), ["value"]),
            (lambda h: optax.chain(optax.sgd(h["rate"]), plateau()), ["value"]),
            (lambda h: optax.contrib.sophia(h["rate"]), ["obj_fn"]),
            (
                lambda h: optax.contrib.sam(optax.sgd(h["rate"]), ASCENT, opaque_mode=True),
                ["grad_fn"],
            ),
            pytest.param(
                lambda h: optax.chain(optax.sgd(h["rate"]), zoom(2)),
                SEARCHED,
                marks=pytest.mark.slow,
            ),
            (lambda h: optax.chain(optax.sgd(h["rate"]), backtracking(5)), SEARCHED),
        ],
        ids=["polyak", "momo_adam", "plateau", "sophia", "sam", "zoom", "backtracking"],
    )
    def test_what_asks_for_the_loss_gets_it(self, make_tx, names):
        """The end is optax's own, and the hypergradient that of differences."""
        start = jnp.array([0.25, -0.5])

        def by_hand(rate):
            tx = optax.with_extra_args_support(make_tx({"rate": rate}))
            extra = {
                "value_fn": lambda p: quartic(p, None, None, None),
                "obj_fn": lambda p: quartic(p, None, None, None),
                "grad_fn": lambda p, i: jax.grad(quartic)(p, None, None, None),
            }
            params: Any = start
            state = tx.init(start)
            for _ in range(4):
                value, at = jax.value_and_grad(quartic)(params, None, None, None)
                known = extra | {"value": value, "grad": at}
                asked = {name: known[name] for name in names}
                updates, state = tx.update(at, state, params, **asked)
                params = optax.apply_updates(params, updates)
            return jnp.sum(params**2)

        def end(rate):
            rule = hg.from_optax(make_tx, quartic)
            out = run(rule, {"rate": rate}, start, num_steps=4, adjoint=hg.ForwardMode())
            return jnp.sum(out.params**2)

        value, bar = jax.jit(jax.value_and_grad(end))(0.02)
        by_hand = jax.jit(by_hand)
        np.testing.assert_allclose(value, by_hand(0.02), rtol=1e-5)
        difference = (by_hand(0.021) - by_hand(0.019)) / 0.002
        np.testing.assert_allclose(bar, difference, rtol=1e-2)

    def test_lbfgs_searches_under_forward_mode_only(self):
        search = zoom(2)
        rule = hg.from_optax(lambda h: optax.lbfgs(h["rate"], 1, linesearch=search), quartic)

        def end(rate, adjoint):
            return jnp.sum(run(rule, {"rate": rate}, num_steps=2, adjoint=adjoint).params)

        with refused(ValueError, "the optax transformation has a lax.while_loop", "ForwardMode()"):
            jax.eval_shape(jax.grad(lambda r: end(r, hg.Direct())), 1.0)
        bar = jax.eval_shape(jax.grad(lambda r: end(r, hg.ForwardMode())), 1.0)
        assert bar.shape == ()

    def test_what_wraps_the_parameters_or_asks_for_more_is_refused_by_name(self):
        def lookahead(hparams):
            return optax.lookahead(optax.sgd(0.1), 3, 0.5)

        with refused(TypeError, "optax's lookahead wraps the parameters"):
            run(hg.from_optax(lookahead, square))

        def ask(updates, state, params=None, *, temperature):
            return updates, state

        asking: Any = ask

        def custom(hparams):
            return optax.GradientTransformationExtraArgs(optax.init_empty_state, asking)

        with refused(TypeError, "asks for temperature, which is not handed over"):
            run(hg.from_optax(custom, square))

    def test_an_update_by_hand_has_no_loss(self):
        rule = hg.from_optax(lambda hparams: optax.polyak_sgd(), square)
        with refused(TypeError, "optax's scale_by_polyak asks for value", "by hand has no loss"):
            rule.update(jnp.ones(2), jnp.ones(2), None, {})

    def test_radam_is_right_in_forward_mode_and_flagged_in_reverse(self):
        rule = hg.from_optax(lambda hparams: optax.radam(hparams["rate"]), quartic)
        start = jnp.array([0.25, -0.5])

        def objective(params, hparams, data):
            return jnp.sum(params**2)

        def found(rate, adjoint):
            run = hg.Run(rule, num_steps=20, adjoint=adjoint)
            return hg.value_and_hypergradient(objective, run, start, {"rate": rate}, None)

        with jax.enable_x64(True):
            start = jnp.asarray(start, jnp.float64)
            value = jax.jit(
                lambda rate: objective(
                    run(rule, {"rate": rate}, start, num_steps=20).params, None, None
                )
            )
            difference = (value(0.02 + 1e-6) - value(0.02 - 1e-6)) / 2e-6
            forward = jax.jit(lambda rate: found(rate, hg.ForwardMode()))(0.02)
            reverse = jax.jit(lambda rate: found(rate, hg.Direct()))(0.02)
        np.testing.assert_allclose(hg.check(forward).hparams["rate"], difference, rtol=1e-6)
        assert jnp.isnan(reverse.hparams["rate"])
        with pytest.raises(hg.HypergradientError, match=r"radam .*ForwardMode.* eps and eps_root"):
            hg.check(reverse)

"""The steps of `fit` beside those of `unroll`, and when it stops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.data import minibatches, with_replacement
from hgrad_jax.runs.trajectory import Trajectory, inputs
from hgrad_jax.training.epoch import recording, run_epoch, start
from tests.shared.fits import (
    DROPPED,
    HPARAMS,
    KEY,
    LOSS,
    METRICS,
    digits,
    fit_digits,
    fit_quadratic,
    initial,
)


def assert_close(tree, other, rtol=1e-6):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7)


class TestSteps:
    @pytest.mark.parametrize(
        "rule",
        [
            hg.momentum(DROPPED),
            hg.average(hg.sgd(DROPPED), decay=0.9),
            hg.from_optax(lambda h: optax.adam(0.1 * h["learning_rate"]), DROPPED),
        ],
        ids=["momentum", "average", "from_optax"],
    )
    def test_are_those_of_unroll(self, rule):
        """With dropout, batches drawn by key, a schedule and a constant."""
        hparams = {"learning_rate": jnp.linspace(0.1, 0.01, 12), "momentum": 0.8}
        settings = {
            "batch_fn": with_replacement(30),
            "hparams_axes": {"learning_rate": 0, "momentum": None},
        }
        out = fit_digits(
            rule, hparams, num_epochs=3, steps_per_epoch=4, loss=DROPPED, key=KEY, **settings
        )
        run = hg.Run(rule, num_steps=12, **settings)
        want = jax.jit(lambda hparams: hg.unroll(run, initial(), hparams, digits()[0], key=KEY))(
            hparams
        )
        assert_close(out.params, want.params)
        assert_close(out.state, want.state)
        assert out.reason == "all epochs are done"
        assert hg.check(out.info).damaged_at == 12
        assert hg.check(out) is out

    def test_epoch_hparams_decay_as_a_schedule_of_steps_does(self):
        def decayed(hparams, epoch):
            return hparams | {"learning_rate": hparams["learning_rate"] * 0.5**epoch}

        out = fit_digits(epoch_hparams=decayed)
        rates = 0.1 * 0.5 ** (np.arange(15) // 5)
        schedule = HPARAMS | {"learning_rate": jnp.asarray(rates, jnp.float32)}
        want = fit_digits(hparams=schedule, hparams_axes={"learning_rate": 0, "momentum": None})
        assert_close(out.params, want.params)
        assert not np.allclose(
            out.params["Dense_0"]["kernel"], fit_digits().params["Dense_0"]["kernel"], rtol=1e-3
        )

    def test_the_initial_state_is_made_with_the_first_epochs_hparams(self):
        rule = hg.Transition(
            init=lambda params, hparams: (params, hparams),
            step=lambda state, hparams, batch, key: (state[0] + hparams, state[1]),
            params=lambda state: state[0],
        )
        settings = {"steps_per_epoch": 3, "epoch_hparams": lambda hparams, epoch: hparams + epoch}
        out = hg.fit(rule, 0.0, 5.0, jnp.zeros(1), num_epochs=2, **settings)
        assert (float(out.params), float(out.state[1])) == (3 * 5 + 3 * 6, 5)

    def test_everything_is_traced_once_whatever_the_number_of_epochs(self):
        def traces(num_epochs):
            count = {"loss": 0, "metrics": 0}

            def loss(*args):
                count["loss"] += 1
                return LOSS(*args)

            def metrics(*args):
                count["metrics"] += 1
                return METRICS(*args)

            fit_digits(hg.momentum(loss), num_epochs=num_epochs, metrics=metrics, valid=digits()[1])
            return count

        assert traces(2) == traces(5)

    def test_recording_the_loss_takes_no_matrix_product_more(self):
        train, rule = digits()[0], hg.momentum(LOSS)

        def products(rule, record):
            trajectory = Trajectory(
                rule, 5, minibatches(40), (False,) * 2, jax.tree.structure(HPARAMS), record
            )
            given = inputs(trajectory, jax.tree.map(jnp.float32, HPARAMS), train, None)
            run = jax.jit(functools.partial(run_epoch, trajectory, None))
            state = start(trajectory, initial(), given)
            text = run.lower(state, given, jnp.int32(0)).compile().as_text()
            assert text is not None
            return text.count(" dot(")

        want = products(rule, None)
        assert want == 5  # two forward, two for the weights, one for the hidden layer
        assert products(recording(rule, LOSS), lambda state, data: state.loss) == want

    def test_epochs_have_as_many_steps_as_there_are_whole_batches(self):
        assert fit_digits(num_epochs=1).history.step.tolist() == [0, 5]
        out = fit_digits(num_epochs=1, batch_fn=minibatches(60))
        assert out.history.step.tolist() == [0, 3]
        assert fit_digits(num_epochs=2, batch_fn=None).history.step.tolist() == [0, 1, 2]


class TestStopping:
    def test_early_stopping_keeps_the_best_parameters(self):
        # From 1 the loss falls for three epochs of one step; then the rate makes it grow.
        rates = jnp.array([0.5, 0.5, 0.5, 3.0, 3.0, 3.0, 3.0, 3.0])
        stop = hg.EarlyStopping("train_loss", patience=2)
        settings = {"steps_per_epoch": 1, "hparams_axes": 0, "early_stopping": stop}
        out = fit_quadratic(8, rates, **settings)
        assert out.reason == "train_loss has not improved since epoch 3"
        assert out.best.epoch == 3
        assert float(out.best.params[0]) == 0.125
        assert out.best.value == 0.125**2 / 2
        assert float(out.params[0]) == 0.125 * 4
        assert out.history.epoch[-1] == 5

        never = dataclasses.replace(stop, patience=None)
        out = fit_quadratic(8, rates, **settings | {"early_stopping": never})
        assert (out.best.epoch, out.history.epoch[-1]) == (3, 8)
        most = hg.EarlyStopping("train_loss", patience=None, is_maximized=True)
        out = fit_quadratic(8, rates, **settings | {"early_stopping": most})
        assert out.best.epoch == 8
        assert fit_quadratic(1).best is None

    def test_a_target_stops_at_the_first_epoch_that_reaches_it(self):
        out = fit_quadratic(9, target=hg.Target("train_loss", 0.01))
        assert out.history.metrics["train_loss"][-2] > 0.01 >= out.history.metrics["train_loss"][-1]
        assert out.reason == "train_loss reached 0.001953 after epoch 2"
        assert hg.Target("a", 0.9, is_maximized=True).is_reached(0.9)
        assert not hg.Target("a", 0.9, is_maximized=True).is_reached(0.8)
        assert not hg.Target("valid_accuracy", 0.9).is_reached(0.8)
        # Metrics are float32, which 0.7 and 0.3 are not.
        assert hg.Target("accuracy", 0.7).is_reached(float(np.float32(0.7)))
        assert hg.Target("loss", 0.3).is_reached(float(np.float32(0.3)))
        assert hg.Target("valid_accuracy", 0.9, is_maximized=False).is_reached(0.8)
        assert fit_quadratic(9, target=hg.Target("train_loss", 1.0)).history.epoch.tolist() == [0]


class TestDivergence:
    def test_keeps_the_history_and_the_last_good_state(self):
        # x' = -1e9 x: the loss leaves float32 in the third step, x in the fifth.
        out = fit_quadratic(9, 1e9)
        assert out.reason == "the loss became inf at step 3; the state after epoch 1 is kept"
        assert float(out.params[0]) == pytest.approx(1e18, rel=1e-6)
        assert out.history.epoch.tolist() == [0, 1]
        assert np.isfinite(out.history.step_loss[:3]).all()
        assert not np.isfinite(out.history.step_loss[3])
        with pytest.raises(hg.HypergradientError, match="infinite or NaN at step 3; lower the le"):
            hg.check(out.info)
        assert np.isfinite(out.history.metrics["train_loss"]).all()

    def test_is_seen_without_recorded_losses(self):
        out = fit_quadratic(9, 1e9, loss=None, metrics=None)
        assert out.reason.startswith("the training became infinite or NaN in epoch 3 (a learning")
        with pytest.raises(hg.HypergradientError, match="somewhere on the way"):
            hg.check(out.info)

    def test_a_metric_that_is_not_finite_stops_too(self):
        def metrics(params, data):
            return {"log": jnp.log(params[0] - 0.1)}

        out = fit_quadratic(9, metrics=metrics)
        assert out.reason == "train_log became nan in epoch 2; the state after epoch 1 is kept"
        assert float(out.params[0]) == 0.25

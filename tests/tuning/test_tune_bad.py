"""Tunings with hypergradients that cannot be used: stopped, skipped, and what is kept."""

import dataclasses
import pickle
import warnings
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.tuning import figures
from hgrad_jax.tuning.history import Rows
from tests.shared import tune_child
from tests.shared.tune_child import HPARAMS, KEY, init_params, tune
from tests.shared.tunings import assert_close, read_lines

key_data = jax.random.key_data


@dataclasses.dataclass(frozen=True)
class Unrestored(hg.Direct):
    """An adjoint whose run backwards does not end at the start."""

    def vjp(self, trajectory, params, inputs):
        end, pull = super().vjp(trajectory, params, inputs)

        def pullback(state_bar, trace_bar):
            params_bar, inputs_bar, info = pull(state_bar, trace_bar)
            return params_bar, inputs_bar, info._replace(mismatches=jnp.int32(7))

        return end, pullback


def sometimes_nan(key):
    """NaN in the second and third of the meta-steps below."""
    bad = [jax.random.fold_in(jax.random.fold_in(KEY, 0), k) for k in (1, 2)]
    bad = [jax.random.split(jax.random.split(k, 1)[0])[0] for k in bad]
    is_bad = jnp.any(jnp.array([jnp.all(jax.random.key_data(k) == key_data(key)) for k in bad]))
    return jnp.where(is_bad, jnp.nan, init_params(key))


class TestBad:
    def test_stop_tells_and_has_what_was_tuned(self, tmp_path):
        folder = hg.Records(tmp_path, figures_every=None)
        with pytest.raises(hg.TuningError, match=r"^meta-step 1: the training became inf") as stop:
            tune(sometimes_nan, records=folder)
        tuned = stop.value.tuned
        assert isinstance(stop.value, hg.HypergradientError)
        assert tuned.history.is_bad.tolist() == [False, True]
        assert_close(tuned.hparams, tune(num_meta_steps=1).hparams)
        first, second = read_lines(tmp_path)
        assert first["problem"] is None
        assert "lower the learning rate" in second["problem"]
        assert second["value"] == [None]
        assert_close(stop.value.usable, HPARAMS)
        # Once more: it goes on from what was good, and stops there again.
        with pytest.raises(hg.TuningError, match=r"^meta-step 1: the training became") as again:
            tune(sometimes_nan, records=folder)
        assert again.value.tuned.resumed_at == 1
        assert len(read_lines(tmp_path)) == 2
        assert_close(again.value.usable, HPARAMS)

    @pytest.mark.parametrize("every", [1, 3])
    def test_after_an_outer_step_too_large_there_are_hyperparameters_to_go_on_from(
        self, every, tmp_path
    ):
        """The last ones whose hypergradient was good, not those that the step led to."""
        growing = optax.sgd(lambda count: jnp.where(jnp.asarray(count) < 2, 0.01, 1e8))
        given = {"records": hg.Records(tmp_path, every=every, figures_every=None)}
        given |= {"optimizer": growing, "num_meta_steps": 6, "fresh_seeds": False}
        with pytest.raises(hg.TuningError, match=r"^meta-step 3: "):
            tune(**given)
        with pytest.raises(hg.TuningError, match=r"^meta-step 3: ") as stop:  # from checkpoints
            tune(**given)
        assert stop.value.tuned.resumed_at == 3
        assert max(np.abs(x).max() for x in jax.tree.leaves(stop.value.tuned.hparams)) > 1e3
        mended = {"optimizer": optax.sgd(0.01), "fresh_seeds": False}
        assert_close(stop.value.usable, tune(num_meta_steps=2, **mended).hparams)
        assert not tune(hparams=stop.value.usable, **mended).history.is_bad.any()

    def test_skip_warns_and_leaves_everything_as_it_was(self):
        settings = {"num_meta_steps": 4, "optimizer": optax.adam(0.1)}
        with pytest.warns(RuntimeWarning, match=r"meta-step \d is skipped: the training") as told:
            out = tune(sometimes_nan, on_bad=hg.Skip(2), **settings)
        assert len(told) == 2
        assert [w.filename for w in told] == [tune_child.__file__] * 2
        assert out.history.is_bad.tolist() == [False, True, True, False]
        assert int(out.opt_state[0].count) == 2
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(out.hparams))
        assert "BAD" in str(out.history)

    def test_skip_stops_after_too_many(self):
        with (
            pytest.warns(RuntimeWarning, match="meta-step 1 is skipped"),
            pytest.raises(hg.TuningError, match=r"^meta-step 2: the training became") as stop,
        ):
            tune(sometimes_nan, on_bad=hg.Skip(1))
        assert stop.value.tuned.history.is_bad.tolist() == [False, True, True]

    def test_a_bad_first_meta_step_is_not_the_best(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            out = tune(
                lambda key: jnp.where(
                    jnp.all(key_data(key) == key_data(first_key())), jnp.nan, init_params(key)
                ),
                on_bad=hg.Skip(),
                early_stopping=hg.EarlyStopping("value", patience=None),
            )
        assert out.best is not None
        assert out.best.meta_step > 0
        assert np.isfinite(out.best.value)

    def test_a_history_without_a_meta_step_has_no_figures(self):
        with pytest.raises(ValueError, match="has no meta-step, so that there is nothing to draw"):
            Rows({}, []).history([]).plot()

    def test_the_figure_shows_where_the_runs_grow(self):
        lengths, value = np.array([5, 5, 10, 10, 20]), np.ones((5, 2))
        figure = figures.of_value(np.arange(5), lengths, value, {"valid_error": np.ones(5)})
        for ax in figure.axes:
            dotted = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
            assert dotted == [1.5, 3.5]

    def test_an_unrestored_run_stops(self):
        with pytest.raises(hg.TuningError, match="meta-step 0: the run backwards did not restore"):
            tune(adjoint=Unrestored())

    def test_a_state_that_begins_infinite_is_no_failure(self):
        plateau = optax.contrib.reduce_on_plateau(accumulation_size=2)
        assert np.isinf(cast(Any, plateau.init(HPARAMS)).best_value)
        out = tune(optimizer=optax.chain(optax.sgd(0.01), plateau))
        assert out.reason == "all meta-steps are done"

    def test_a_failure_goes_from_one_process_to_another(self):
        with pytest.raises(hg.TuningError) as stop:
            tune(optimizer=optax.scale(np.inf))
        copy = pickle.loads(pickle.dumps(stop.value))
        assert str(copy) == str(stop.value)
        assert copy.tuned.reason == stop.value.tuned.reason
        jax.tree.map(np.testing.assert_array_equal, copy.usable, stop.value.usable)

    def test_an_update_that_is_not_finite_stops(self):
        with pytest.raises(hg.TuningError, match="meta-step 0: the optimizer made hyperparameters"):
            tune(optimizer=optax.scale(np.inf))
        with pytest.raises(hg.TuningError, match="the optimizer made hyperparameters") as stop:
            tune(optimizer=optax.scale(np.inf))
        assert_close(stop.value.usable, HPARAMS)

    def test_a_bad_start_leaves_nothing_to_go_on_from(self):
        with pytest.raises(hg.TuningError, match=r"^meta-step 0: the training became") as stop:
            tune(lambda key: init_params(key) * jnp.nan)
        assert stop.value.usable is None


def first_key():
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    return jax.random.split(jax.random.split(key, 1)[0])[0]

"""Tuning beside the loop that one would write; what goes wrong, records, and what it refuses."""

import dataclasses
import functools
import json
import os
import pickle
import shutil
import warnings
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.image import imread

import hgrad_jax as hg
from hgrad_jax.data import minibatches, shared_examples
from hgrad_jax.tuning import figures, records
from hgrad_jax.tuning.history import Rows
from hgrad_jax.tuning.splits import resplit
from tests import tune_child
from tests.tune_child import (
    AXES,
    HPARAMS,
    KEY,
    RULE,
    SETTINGS,
    TEST,
    TRAIN,
    VALID,
    init_params,
    linear_data,
    metrics,
    objective,
    run_hparams,
    tune,
)
from tests.tunings import assert_close, read_lines, same_bits

key_data = jax.random.key_data


@functools.cache
def by_hand(num_runs, is_fresh):
    """The loop of three meta-steps that a user would write."""

    @jax.jit
    def gradients(hparams, keys):
        def value(hparams, key):
            key_init, key_run = jax.random.split(key)
            out = hg.unroll(
                RULE,
                init_params(key_init),
                run_hparams(hparams, 4),
                TRAIN,
                num_steps=4,
                key=key_run,
                batch_fn=minibatches(5),
                hparams_axes=AXES,
            )
            return objective(out.params, hparams, VALID)

        return jax.vmap(jax.value_and_grad(value), in_axes=(None, 0))(hparams, keys)

    hparams, values, found = HPARAMS, [], HPARAMS
    for k in range(3):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 0), k if is_fresh else 0)
        value, found = gradients(hparams, jax.random.split(key, num_runs))
        hparams = jax.tree.map(lambda h, g: h - 0.1 * jnp.sign(g.mean(0)), hparams, found)
        values.append(value)
    return hparams, np.stack(values), found


class TestTune:
    @pytest.mark.parametrize(("num_runs", "is_fresh"), [(1, True), (3, False)])
    def test_it_is_the_loop_that_one_would_write(self, num_runs, is_fresh):
        out = tune(num_runs=num_runs, fresh_seeds=is_fresh)
        hparams, values, gradients = by_hand(num_runs, is_fresh)
        assert_close(out.hparams, hparams)
        assert_close(out.history.value, values)
        mean = jax.tree.map(lambda g: g.mean(0), gradients)
        assert_close(
            out.history.norm[-1], np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(mean)))
        )
        assert_close(out.history.hparams["log_rate"]["norm"][-1], np.linalg.norm(mean["log_rate"]))
        if num_runs > 1:
            variances = [np.var(g, axis=0, ddof=1).sum() for g in jax.tree.leaves(gradients)]
            assert_close(out.history.spread[-1], np.sqrt(sum(variances)))
        else:
            assert np.isnan(out.history.spread).all()
        assert out.reason == "all meta-steps are done"
        assert out.best is None
        assert out.resumed_at is None

    def test_counts_may_be_of_numpy(self):
        one = np.int64(1)
        out = tune(num_meta_steps=one, num_runs=one, num_steps=np.int64(4), batch_parts=one)
        assert out.history.value.shape == (1, 1)

    def test_seeds_are_fresh_or_fixed(self):
        starts = {"objective": lambda params, hparams, valid: params[0], "num_meta_steps": 2}
        fixed = tune(optimizer=optax.sgd(0.0), fresh_seeds=False, **starts).history.value
        fresh = tune(optimizer=optax.sgd(0.0), **starts).history.value
        assert fixed[0] == fixed[1] == fresh[0] != fresh[1]

    def test_runs_may_grow_and_each_length_is_compiled_once(self, tmp_path):
        lengths = []

        def counted(hparams, num_steps):
            lengths.append(num_steps)
            return run_hparams(hparams, num_steps)

        def growing(meta_step):
            return (2, 3, 3, 2)[meta_step]

        tune(
            run_hparams=counted,
            num_steps=growing,
            num_meta_steps=3,
            records=hg.Records(tmp_path, figures_every=None),
        )
        # Once for the check before anything runs, and once for the program.
        assert sorted(lengths) == [2, 2, 3, 3]
        again = tune(
            num_steps=growing,
            num_meta_steps=4,
            run_hparams=counted,
            records=hg.Records(tmp_path, figures_every=None),
        )
        assert again.resumed_at == 3
        assert again.history.num_steps.tolist() == [2, 3, 3, 2]
        assert same_bits(again, tune(num_steps=growing, num_meta_steps=4))
        with pytest.raises(hg.CheckpointError, match="differs in num_steps: 3 in meta-step 1"):
            tune(
                num_steps=lambda k: 2,
                num_meta_steps=4,
                run_hparams=counted,
                records=hg.Records(tmp_path, figures_every=None),
            )

    def test_splits_are_fresh_and_keep_the_examples(self):
        def seen(params, hparams, valid):
            return jnp.sum(valid[1]) + 0 * jnp.sum(params)

        frozen = {"objective": seen, "optimizer": optax.sgd(0.0), "init": jnp.zeros(3)}
        fresh = tune(fresh_splits=True, **frozen).history.value[:, 0]
        assert len(set(fresh.tolist())) == 3
        everything = np.concatenate([TRAIN[1], VALID[1]])
        for k in range(3):
            key = jax.random.fold_in(jax.random.fold_in(KEY, 1), k)
            train, valid = resplit(TRAIN, VALID, key)
            np.testing.assert_allclose(fresh[k], valid[1].sum(), rtol=1e-5)
            assert sorted([*train[1].tolist(), *valid[1].tolist()]) == sorted(everything.tolist())
            np.testing.assert_array_equal(
                sorted(np.concatenate([train[0], valid[0]])[:, 0]),
                sorted(np.concatenate([TRAIN[0], VALID[0]])[:, 0]),
            )

    def test_the_test_data_change_nothing_but_what_is_reported(self):
        out = tune(test=TEST, metrics=metrics)
        other = tune(test=linear_data(5, 99), metrics=metrics)
        assert out.history.metrics.keys() == {"valid_error", "test_error"}
        assert same_bits(
            out._replace(history=out.history._replace(metrics={})),
            other._replace(history=other.history._replace(metrics={})),
        )
        different = out.history.metrics["test_error"] != other.history.metrics["test_error"]
        assert different.all()

    def test_early_stopping_keeps_the_best(self):
        out = tune(
            num_meta_steps=30,
            optimizer=optax.sgd(-0.5),  # uphill
            fresh_seeds=False,
            early_stopping=hg.EarlyStopping("value", patience=2),
        )
        assert out.reason == "value has not improved since meta-step 0"
        assert out.best is not None
        assert out.best.meta_step == 0
        assert out.history.value.shape == (3, 1)
        assert out.best.value == out.history.value[0, 0]
        assert_close(out.best.hparams, HPARAMS)

    def test_reversible_runs_say_that_they_are_restored_and_a_bar_goes_on(self, tmp_path, capsys):
        def plain_loss(params, hparams, batch, key):
            return jnp.sum((params - 1.0) ** 2)

        out = hg.tune(
            lambda params, hparams, valid: jnp.sum((params - 1.0) ** 2),
            hg.momentum(plain_loss),
            jnp.zeros(2),
            {"learning_rate": 0.1, "momentum": 0.9},
            None,
            num_steps=5,
            num_meta_steps=2,
            optimizer=hg.nonnegative_adam(0.01),
            adjoint=hg.Reversible(),
            records=hg.Records(tmp_path, figures_every=None),
            progress=True,
        )
        assert "meta-step 2/2" in capsys.readouterr().err
        assert [line["is_restored"] for line in read_lines(tmp_path)] == [True, True]
        assert out.history.value[1, 0] < out.history.value[0, 0]


class TestMetaStep:
    @staticmethod
    def step(**changes):
        hparams, optimizer = {"learning_rate": jnp.float32(0.1)}, hg.sign_descent(0.1)
        settings: Any = {"optimizer": optimizer} | changes
        return hg.meta_step(
            lambda params, hparams, valid: jnp.sum(params),
            hg.sgd(lambda params, hparams, batch, key: jnp.sum(params**2)),
            settings.pop("init_params", jnp.ones(2)),
            hparams,
            settings.pop("opt_state", optimizer.init(hparams)),
            None,
            num_steps=2,
            **settings,
        )

    def test_what_it_found_can_be_checked(self):
        step = self.step()
        with pytest.raises(TypeError, match=r"info is a MetaStep; .*: hg.check\(step.found\)"):
            hg.check(cast(Any, step))
        assert hg.check(step.found) is step.found

    def test_hyperparameters_of_a_run_that_are_none(self):
        with pytest.raises(ValueError, match="returned None; it must return the hyperparameters"):
            self.step(run_hparams=lambda hparams, num_steps: None)
        with pytest.raises(TypeError, match=r"run_hparams is 3, but is called as"):
            self.step(run_hparams=3)

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"optimizer": 0.1}, TypeError, "optimizer is 0.1; it must be an optax transformation"),
            ({"opt_state": None}, ValueError, r"opt_state is not of this .* optimizer.init\(hpar"),
            ({"optimizer": optax.adam(0.1)}, ValueError, "opt_state is not of this optimizer and"),
            ({"num_runs": 0}, ValueError, "num_runs is 0; it must be a positive int"),
            ({"key": 0}, TypeError, "key is 0, not one PRNG key"),
            (
                {"init_params": lambda key: float(key_data(key)[0]), "key": KEY},
                TypeError,
                "init_params asks a traced array for its value",
            ),
        ],
        ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
    )
    def test_bad_input(self, settings, error, message):
        with pytest.raises(error, match=message):
            jax.jit(lambda: self.step(**settings).hparams)()

    def test_it_can_be_mapped_over_settings(self):
        of_loop = ("num_meta_steps", "progress")
        settings: dict[str, Any] = {name: x for name, x in SETTINGS.items() if name not in of_loop}
        optimizer = settings["optimizer"] = optax.adam(0.1)

        def step(hparams):
            return hg.meta_step(
                objective,
                RULE,
                init_params,
                hparams,
                optimizer.init(hparams),
                TRAIN,
                VALID,
                **settings,
            )

        many = jax.tree.map(lambda x: jnp.stack([x, x - 0.5]), HPARAMS)
        found = jax.jit(jax.vmap(step))(many)
        for i in range(2):
            one = functools.partial(jax.tree.map, lambda x, i=i: x[i])
            alone = jax.jit(step)(one(many))
            assert_close(one(found.gradient), alone.gradient)
            assert_close(one(found.hparams), alone.hparams)

    def test_without_a_key(self):
        optimizer = optax.sgd(1.0)
        given = (HPARAMS, optimizer.init(HPARAMS), TRAIN, VALID)
        with pytest.raises(ValueError, match="key is None, but several runs or random"):
            hg.meta_step(objective, RULE, init_params, *given, num_steps=2, optimizer=optimizer)


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


def grown(updates, state, params=None):
    return updates, (state, state)


GROWING = optax.GradientTransformation(lambda params: 0.0, grown)


def first_key():
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    return jax.random.split(jax.random.split(key, 1)[0])[0]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder of three meta-steps, and their Tuned."""
    folder = tmp_path_factory.mktemp("records") / "run"
    return folder, tune(records=hg.Records(folder, is_whole=True), num_runs=2)


class TestRecords:
    def test_a_line_a_meta_step(self, recorded):
        folder, out = recorded
        lines = read_lines(folder)
        assert [line["meta_step"] for line in lines] == [0, 1, 2]
        assert [line["value"] for line in lines] == out.history.value.tolist()
        assert [line["seconds"] for line in lines] == out.history.seconds.tolist()
        for line in lines:
            log_rate = np.float32(line["hparams"]["log_rate"])
            summary = line["summaries"]["log_rate"]
            assert summary["mean"] == pytest.approx(log_rate.mean())
            assert summary["std"] == pytest.approx(log_rate.std(), rel=1e-4)
            assert (summary["min"], summary["max"]) == (log_rate.min(), log_rate.max())
            norm = np.linalg.norm(line["hypergradient"]["log_rate"])
            assert summary["norm"] == pytest.approx(norm)
            assert line["bytes"] > 0
            assert line["problem"] is line["is_restored"] is None
        assert_close(np.array(lines[0]["hparams"]["log_rate"]), HPARAMS["log_rate"])

    def test_figures_are_images_with_something_on_them(self, recorded):
        for name in ("value", "hypergradient", "hparams"):
            image = imread(recorded[0] / f"{name}.png")
            assert min(image.shape[:2]) >= 250
            assert image[..., :3].std() > 0.05

    def test_a_run_that_is_done_is_read(self, recorded):
        again = tune(records=hg.Records(recorded[0], is_whole=True), num_runs=2)
        assert again.resumed_at == 3
        assert same_bits(again, recorded[1])

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"hparams": HPARAMS | {"log_l2": jnp.float32(-3.5)}}, "hparams"),
            ({"train": linear_data(12, 9)}, "train"),
            ({"valid": linear_data(6, 9)}, "valid"),
            ({"key": jax.random.key(1)}, "key"),
            ({"fresh_seeds": False}, "fresh_seeds"),
            ({"optimizer": hg.sign_descent(0.2)}, "program"),
            ({"num_steps": 5}, "program"),
            ({"on_bad": hg.Skip()}, "on_bad"),
        ],
        ids=lambda x: x if isinstance(x, str) else "",
    )
    def test_a_folder_of_another_configuration_is_refused(self, change, name, recorded):
        before = (recorded[0] / "meta_steps.jsonl").read_bytes()
        with pytest.raises(hg.CheckpointError, match=rf"another run, which differs in [^;]*{name}"):
            tune(records=hg.Records(recorded[0], is_whole=True), **{"num_runs": 2} | change)
        assert (recorded[0] / "meta_steps.jsonl").read_bytes() == before

    def test_fewer_meta_steps_than_are_done(self, recorded):
        with pytest.raises(ValueError, match=r"num_meta_steps is 2, but the tuning .* done 3"):
            tune(records=hg.Records(recorded[0]), num_runs=2, num_meta_steps=2)

    def test_records_of_another_tuning_before_its_first_checkpoint(self, recorded, tmp_path):
        """All that a kill may leave of it; they are not written over."""
        path = tmp_path / "meta_steps.jsonl"
        line = (recorded[0] / "meta_steps.jsonl").read_text().splitlines()[0]
        path.write_text(line.replace('"tuning": "', '"tuning": "0') + "\n")
        before = path.read_bytes()
        with pytest.raises(hg.CheckpointError, match="is the record of another tuning; name"):
            tune(records=hg.Records(tmp_path), num_runs=2)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("every", [1, 5])
    def test_checkpoints_may_be_more_or_fewer_than_before_a_kill(self, every, recorded, tmp_path):
        """As if killed before the first checkpoint, with three lines."""
        settings, given = {"num_runs": 2}, {"figures_every": None, "is_whole": True}
        tune(records=hg.Records(tmp_path, every=3, **given), **settings)
        assert len(read_lines(tmp_path)) == 3
        shutil.rmtree(tmp_path / "checkpoints")
        out = tune(records=hg.Records(tmp_path, every=every, **given), **settings)
        assert out.resumed_at is None
        assert same_bits(out, recorded[1])
        assert [line["meta_step"] for line in read_lines(tmp_path)] == [0, 1, 2]

    @pytest.mark.parametrize("damage", ["shortened", "strange", "no checkpoints"])
    def test_records_that_are_not_the_checkpoint_s(self, damage, recorded, tmp_path):
        folder = tmp_path / "run"
        shutil.copytree(recorded[0], folder)
        path = folder / "meta_steps.jsonl"
        if damage == "no checkpoints":
            shutil.rmtree(folder / "checkpoints")
        else:
            line, *rest = path.read_text().splitlines(keepends=True)
            path.write_text("".join([line[:9] + "\n", *rest] if damage == "strange" else rest))
        before = path.read_bytes()
        with pytest.raises(hg.CheckpointError, match="is not the record of a tuning of which"):
            tune(records=hg.Records(folder), num_runs=2)
        assert path.read_bytes() == before

    def test_a_kill_before_any_of_the_writes(self, recorded, tmp_path, monkeypatch):
        """As an exception that nothing catches, when a file is written but not yet in its place.

        The calls, each of which goes on where the one before was killed: in the first line, in the
        second, in a figure halfway, in a figure at the end.
        """

        class Killed(BaseException):
            pass

        writes = []

        def counted(call, replace, *args):
            writes.append(args)
            if len(writes) == call:
                raise Killed
            return replace(*args)

        def timeless(folder):
            return [json.dumps(line | {"seconds": 0}) for line in read_lines(folder)]

        folder, names = tmp_path / "run", []
        settings = {"num_runs": 2, "records": hg.Records(folder, figures_every=2, is_whole=True)}
        for call in (1, 2, 3, 4):
            writes.clear()
            with monkeypatch.context() as patch:
                patch.setattr(records.os, "replace", functools.partial(counted, call, os.replace))
                with pytest.raises(Killed):
                    tune(**settings)
            names.append(writes[-1][1].name)
            left = timeless(folder)
            assert left == timeless(recorded[0])[: len(left)]
            for figure in folder.glob("[!.]*.png"):
                imread(figure)
        assert names == [*["meta_steps.jsonl"] * 2, "hypergradient.png", "hparams.png"]
        assert same_bits(tune(**settings), recorded[1])
        assert timeless(folder) == timeless(recorded[0])
        assert {path.name for path in folder.iterdir()} == {
            *("checkpoints", "hparams.png", "hypergradient.png", "meta_steps.jsonl", "value.png")
        }

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"every": 0}, "every is 0; it must be a positive int"),
            ({"figures_every": 0}, "figures_every is 0; it must be a positive int, or None"),
            ({"folder": __file__}, "which is a file; name a folder"),
        ],
        ids=lambda x: x if isinstance(x, str) else next(iter(x)),
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            hg.Records(**{"folder": "records"} | settings)

    def test_no_folder(self):
        with pytest.raises(TypeError, match="folder is None; name a folder by a str or"):
            hg.Records(cast(Any, None))


class TestSharedExamples:
    def test_all_copies_are_found_and_nothing_else(self):
        x, y = TRAIN
        other = (
            np.concatenate([x[3:5], VALID[0], x[7:8]]),
            np.concatenate([y[3:5], VALID[1], y[:1]]),
        )
        assert shared_examples(TRAIN, other).tolist() == [
            [3, 0],
            [4, 1],
        ]  # the last's label is other
        assert shared_examples(TRAIN, TRAIN).tolist() == [[i, i] for i in range(12)]
        assert not len(shared_examples(TRAIN, VALID))

    @pytest.mark.parametrize(
        "other", [None, TRAIN[0], (TRAIN[0][:, :2], TRAIN[1]), (np.float32(1.0), np.float32(2.0))]
    )
    def test_other_kinds_share_nothing(self, other):
        assert shared_examples(TRAIN, other).shape == (0, 2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"valid": tuple(x[5:9] for x in TRAIN)},
            ValueError,
            "valid overlaps train: 4 of its .* 5",
        ),
        ({"test": VALID, "metrics": metrics}, ValueError, "test overlaps valid: 6 of its examples"),
        ({"train": "mnist"}, TypeError, "train is 'mnist'; train must be a pytree of arrays"),
        ({"num_meta_steps": 0}, ValueError, "num_meta_steps is 0; it must be a positive int"),
        ({"num_runs": 1.5}, ValueError, "num_runs is 1.5; it must be a positive int"),
        ({"num_steps": lambda k: 2 - k}, ValueError, "at least one and at most num_steps = 1"),
        ({"num_steps": lambda k: 2.0}, TypeError, "num_steps is 2.0; it must be an int"),
        ({"key": None}, ValueError, "key is None, but several runs, fresh splits and random"),
        ({"optimizer": 0.1}, TypeError, "optimizer is 0.1; it must be an optax transformation"),
        ({"on_bad": "skip"}, TypeError, r"on_bad is 'skip'; it must be hg.Stop\(\) or hg.Skip"),
        ({"records": "folder"}, TypeError, r"records is 'folder'; it must be an hg.Records"),
        ({"test": TEST}, ValueError, "test is given, but metrics is None"),
        ({"valid": None, "metrics": metrics}, ValueError, "metrics is given, but neither valid"),
        (
            {"metrics": lambda params, data: jnp.float32(0.5)},
            ValueError,
            "it must return a dict of scalars by name",
        ),
        ({"hparams": {}, "run_hparams": None}, ValueError, "hparams is an empty tree"),
        ({"hparams": {"a": 1}}, TypeError, r"hparams\['a'\] has dtype int32"),
        ({"train": (TRAIN[0], TRAIN[1] * np.nan)}, ValueError, r"train\[1\] has 12 numbers"),
        ({"fresh_splits": True, "valid": VALID[0]}, ValueError, "fresh_splits is True, but an ex"),
        ({"run_hparams": lambda h: h}, TypeError, r"called as run_hparams\(hparams, num_steps\)"),
        (
            {"run_hparams": lambda h, n: None},
            ValueError,
            r"run_hparams\(hparams, num_steps\) returned None; it must return the hyperparameters",
        ),
        (
            {"run_hparams": lambda h, n: {"learning_rate": "a"}},
            TypeError,
            r"run_hparams\(hparams, num_steps\)\['learning_rate'\] is 'a', not an array of floats",
        ),
        (
            {"run_hparams": lambda h, n: h if h["log_l2"] > 0 else None},
            TypeError,
            r"run_hparams asks a traced array for its value, .*; write jnp.where or jax.lax.cond",
        ),
        (
            {"metrics": lambda params, data, x: {}},
            TypeError,
            r"metrics takes \(params, data, x\), but is called as metrics\(params, data\)",
        ),
        (
            {"metrics": metrics, "metrics_args": (TRAIN,)},
            TypeError,
            r"metrics takes \(params, data\), but is called as metrics\(params, data, args_0\)",
        ),
        ({"metrics": metrics, "metrics_args": TRAIN[0]}, TypeError, "it must be a tuple of what"),
        (
            {"early_stopping": hg.EarlyStopping("test_error"), "test": TEST, "metrics": metrics},
            ValueError,
            "follows 'test_error', but the test data must not choose",
        ),
        (
            {"early_stopping": hg.EarlyStopping("valid_loss")},
            ValueError,
            "early_stopping follows 'valid_loss'; the metrics are value",
        ),
        (
            {"optimizer": GROWING},
            ValueError,
            "optimizer.update changes the kind of hyperparameters or of its own state",
        ),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        tune(**settings)


def test_inside_of_a_program():
    with pytest.raises(TypeError, match=r"tune cannot run inside jit.*hg\.meta_steps is for that"):
        jax.jit(lambda x: tune(hparams=HPARAMS | {"log_l2": x}).hparams)(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hg.sign_descent(0.1, momentum=cast(Any, "a")), "momentum is 'a'; it must be at"),
        (lambda: hg.nonnegative_adam(0.1, b1=2.0), "b1 is 2.0; it must be at least 0 and below 1"),
        (lambda: hg.nonnegative_adam(0.1, eps=-1.0), "eps is -1.0; it must be a number, at least"),
    ],
)
def test_settings_of_optimizers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_at_most_is_positive():
    with pytest.raises(ValueError, match="at_most is 0; it must be a positive int"):
        hg.Skip(0)

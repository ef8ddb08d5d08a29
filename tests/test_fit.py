import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import hgrad_jax as hg
from hgrad_jax.data import Dataset, load, minibatches, with_replacement
from hgrad_jax.models import MLP, classification_loss, classification_metrics
from hgrad_jax.training.epoch import recording, run_epoch, start
from hgrad_jax.trajectory import Trajectory, inputs
from tests import fit_child

KEY = jax.random.key(3)


@functools.cache
def digits():
    """200 digits to train on and 100 to validate on."""
    train, valid = load("digits")
    return Dataset(*(x[:200] for x in train)), Dataset(*(x[:100] for x in valid))


MODEL = MLP((12, 10))
LOSS = classification_loss(MODEL)
DROPPED = classification_loss(MLP((12, 10), dropout_rate=0.1))
METRICS = classification_metrics(MODEL)
HPARAMS = {"learning_rate": 0.1, "momentum": 0.9}


@functools.cache
def initial():
    return MODEL.init(KEY, digits()[0].inputs[:1], train=False)["params"]


def quadratic(params, hparams, batch, key):
    """A loss whose training is known: with rate lr, x' = (1 - lr) x."""
    return jnp.sum(params**2) / 2


def fit_quadratic(num_epochs: int = 4, rate: Any = 0.5, **settings: Any) -> Any:
    settings = {
        "steps_per_epoch": 2,
        "loss": quadratic,
        "metrics": lambda params, data: {"loss": jnp.sum(params**2) / 2},
    } | settings
    rule = hg.sgd(quadratic, learning_rate=hg.field("rate"))
    given = {"rate": rate}
    return hg.fit(rule, jnp.array([1.0]), given, jnp.zeros(1), num_epochs=num_epochs, **settings)


def fit_digits(rule=None, hparams=None, train=None, num_epochs=3, **settings) -> Any:
    settings = {"key": KEY, "batch_fn": minibatches(40)} | settings
    rule = rule or hg.momentum(LOSS)
    train = train or digits()[0]
    return hg.fit(rule, initial(), hparams or HPARAMS, train, num_epochs=num_epochs, **settings)


def assert_close(tree, other, rtol=1e-6):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7)


def same_bits(out, other):
    ours, theirs = fit_child.bits(out), fit_child.bits(other)
    assert ours.keys() == theirs.keys()
    return all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)


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
            "key": KEY,
            "batch_fn": with_replacement(30),
            "hparams_axes": {"learning_rate": 0, "momentum": None},
        }
        out = fit_digits(rule, hparams, num_epochs=3, steps_per_epoch=4, loss=DROPPED, **settings)
        want = jax.jit(
            lambda hparams: hg.unroll(
                rule, initial(), hparams, digits()[0], num_steps=12, **settings
            )
        )(hparams)
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


class TestHistory:
    def test_against_the_closed_form(self):
        out = fit_quadratic()
        x = 0.5 ** np.arange(9)
        np.testing.assert_allclose(out.history.step_loss, x[:-1] ** 2 / 2)
        np.testing.assert_allclose(out.history.metrics["train_loss"], x[::2] ** 2 / 2)
        assert out.history.epoch.tolist() == [0, 1, 2, 3, 4]
        assert out.history.step.tolist() == [0, 2, 4, 6, 8]
        assert (np.diff(out.history.seconds) > 0).all()
        assert list(out.history.metrics) == ["train_loss"]

    def test_metrics_of_both_parts_are_those_of_the_parameters(self):
        train, valid = digits()
        out = fit_digits(valid=valid, metrics=METRICS)
        for part, data in (("train", train), ("valid", valid)):
            measured = jax.jit(METRICS)(out.params, data)
            for name, value in measured.items():
                assert out.history.metrics[f"{part}_{name}"][-1] == value
                assert out.history.metrics[f"{part}_{name}"].shape == (4,)
        part = fit_digits(metrics=METRICS, train_sample=valid)
        np.testing.assert_array_equal(
            part.history.metrics["train_loss"], out.history.metrics["valid_loss"]
        )

    def test_batch_normalization_by_metrics_args(self):
        train, valid = digits()
        model = MLP((12, 10), batch_norm=True)
        params = model.init(KEY, train.inputs[:1], train=False)["params"]
        measure, loss = classification_metrics(model), classification_loss(model)
        settings = {"num_epochs": 2, "batch_fn": minibatches(50), "metrics": measure}
        run = functools.partial(hg.fit, hg.momentum(loss), params, HPARAMS, train, valid)
        out = run(**settings, metrics_args=(train.inputs,))
        want = jax.jit(measure)(out.params, valid, train.inputs)["loss"]
        np.testing.assert_allclose(out.history.metrics["valid_loss"][-1], want, rtol=1e-6)
        with pytest.raises(ValueError, match="train_inputs is None"):
            run(**settings)

    def test_counts_may_be_of_numpy(self):
        out = fit_quadratic(num_epochs=cast(int, np.int64(2)), steps_per_epoch=np.int32(3))
        assert out.history.step.tolist() == [0, 3, 6]

    def test_table_json_and_figure(self):
        out = fit_digits(valid=digits()[1], metrics=METRICS, loss=LOSS)
        lines = str(out.history).splitlines()
        assert len(lines) == 5
        assert lines[0].split()[:4] == ["epoch", "step", "train", "accuracy"]
        read = json.loads(out.history.to_json())
        assert read["metrics"]["valid_loss"] == out.history.metrics["valid_loss"].tolist()
        assert len(read["step_loss"]) == 15

        accuracy, loss = out.history.plot().axes
        assert [line.get_label() for line in accuracy.lines] == ["train", "validation"]
        np.testing.assert_array_equal(loss.lines[-1].get_ydata(), out.history.metrics["valid_loss"])
        behind = loss.lines[0]
        assert behind.get_xdata()[5] == 1.0  # the sixth step begins the second epoch
        assert fit_digits(loss=LOSS).history.plot().axes[0].get_ylabel() == "loss"
        with pytest.raises(ValueError, match="there are 2 panels"):
            out.history.plot(Figure().subplots())

    def test_nothing_to_draw(self):
        out = fit_quadratic(num_epochs=1, loss=None, metrics=None)
        with pytest.raises(ValueError, match=r"neither metrics nor losses, .* pass metrics= or"):
            out.history.plot()
        history = fit_quadratic(num_epochs=1).history
        with pytest.raises(TypeError, match=r"axes are \[5\]; pass matplotlib's, or None"):
            history.plot(5)

    def test_the_bar_shows_rates_on_standard_error_if_asked_to(self, capsys):
        fit_digits(metrics=METRICS, progress=True)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "3/3" in shown.err
        assert "steps/s" in shown.err
        fit_digits(metrics=METRICS)
        assert capsys.readouterr() == ("", "")


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


def with_checkpoints(folder, **changes):
    return {
        "valid": digits()[1],
        "metrics": METRICS,
        "loss": LOSS,
        "early_stopping": hg.EarlyStopping(),
        "checkpoints": hg.Checkpoints(folder, **changes),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    fit_digits(num_epochs=2, **with_checkpoints(folder))
    return folder


class TestCheckpoints:
    def test_a_longer_run_goes_on_from_a_shorter_one_bit_for_bit(self, tmp_path):
        whole = fit_digits(num_epochs=5, **with_checkpoints(tmp_path / "whole"))
        half = fit_digits(num_epochs=2, **with_checkpoints(tmp_path / "half"))
        assert half.resumed_at is None
        both = fit_digits(num_epochs=5, **with_checkpoints(tmp_path / "half"))
        assert both.resumed_at == 2
        assert same_bits(both, whole)
        assert both.history.seconds[2] == half.history.seconds[2]
        again = fit_digits(num_epochs=5, **with_checkpoints(tmp_path / "half"))
        assert again.resumed_at == 5
        assert same_bits(again, whole)
        with pytest.raises(ValueError, match=r"num_epochs is 3, but .* has done 5 already"):
            fit_digits(num_epochs=3, **with_checkpoints(tmp_path / "half"))
        # Without checkpoints they are the same bits as well.
        without = with_checkpoints(tmp_path / "whole") | {"checkpoints": None}
        assert same_bits(fit_digits(num_epochs=5, **without), whole)

    def test_some_are_written_and_some_stay(self, tmp_path):
        fit_digits(num_epochs=7, **with_checkpoints(tmp_path, every=3, keep=2))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "7"]

    def test_a_stopped_run_stays_stopped(self, tmp_path):
        target = {"target": hg.Target("train_loss", 2.0)}
        out = fit_digits(num_epochs=9, **with_checkpoints(tmp_path), **target)
        assert out.reason.startswith("train_loss reached")
        again = fit_digits(num_epochs=9, **with_checkpoints(tmp_path), **target)
        assert again.reason == out.reason
        assert same_bits(again, out)

    @pytest.mark.parametrize(
        ("changes", "differs"),
        [
            ({"hparams": {"learning_rate": 0.2, "momentum": 0.9}}, "hparams;"),
            ({"key": jax.random.key(4)}, "key;"),
            ({"batch_fn": with_replacement(40)}, "program"),
            ({"rule": hg.heavy_ball(LOSS)}, "program"),
            ({"steps_per_epoch": 4}, "steps_per_epoch"),
            ({"valid": Dataset(*(x[::-1] for x in digits()[1]))}, "metrics' data;"),
            ({"early_stopping": hg.EarlyStopping(patience=3)}, "early_stopping"),
        ],
        ids=lambda x: x if isinstance(x, str) else next(iter(x)),
    )
    def test_of_another_run_are_refused(self, changes, differs, written):
        settings = with_checkpoints(written) | changes
        with pytest.raises(hg.CheckpointError, match=rf"of another run.*{differs}.*delete"):
            fit_digits(num_epochs=2, **settings)

    def test_a_damaged_one_is_named_and_the_one_before_serves(self, written, tmp_path):
        shutil.copytree(written, tmp_path / "run")
        about = tmp_path / "run" / "2" / "about" / "metadata"
        about.write_bytes(about.read_bytes()[:-9])
        with pytest.raises(hg.CheckpointError, match=r"run/2 is damaged .*delete it to go on"):
            fit_digits(num_epochs=2, **with_checkpoints(tmp_path / "run"))
        shutil.rmtree(tmp_path / "run" / "2")
        again = fit_digits(num_epochs=2, **with_checkpoints(tmp_path / "run"))
        assert again.resumed_at == 1
        assert same_bits(again, fit_digits(num_epochs=2, **with_checkpoints(written)))

    def test_so_is_one_whose_description_is_another(self, written, tmp_path):
        """The digest holds for the names of the metrics and the fingerprint, too."""
        shutil.copytree(written, tmp_path / "run")
        about = tmp_path / "run" / "2" / "about" / "metadata"
        said = about.read_text()
        assert "valid_loss" in said
        about.write_text(said.replace("valid_loss", "valid_lass"))
        with pytest.raises(hg.CheckpointError, match=r"run/2 is damaged \(its digest is another"):
            fit_digits(num_epochs=2, **with_checkpoints(tmp_path / "run"))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"every": 0}, "every is 0; it must be a positive int"),
            ({"keep": 1.5}, "keep is 1.5; it must be a positive int"),
            ({"folder": __file__}, "which is a file; name a folder"),
            ({"folder": f"{__file__}/run"}, "which is under a file; name a folder"),
        ],
        ids=lambda x: x if isinstance(x, str) else next(iter(x)),
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            hg.Checkpoints(**{"folder": "checkpoints"} | settings)

    @pytest.mark.parametrize("folder", [None, 5])
    def test_no_folder(self, folder):
        with pytest.raises(TypeError, match=f"folder is {folder}; name a folder by a str or"):
            hg.Checkpoints(folder)


def killed(folder, result, at_epoch, delay):
    """Starts the child, kills it some time after it began an epoch; returns its exit status."""
    child = subprocess.Popen([sys.executable, "-m", "tests.fit_child", str(folder), str(result)])
    try:
        while child.poll() is None and last_epoch(folder) < at_epoch:
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        status = child.wait()
    return status


def last_epoch(folder):
    names = [path.name for path in Path(folder).iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def killed_and_resumed(folder, epochs, seed):
    """Kills the run some time after each of the epochs, and lets it go on from its checkpoints."""
    moments = random.Random(seed)
    result = folder / "result.npz"
    for epoch in epochs:
        delay = moments.uniform(0, 0.1)
        status = killed(folder / "run", result, epoch, delay)
        assert status == -signal.SIGKILL, f"the child ended before it was killed: {status}"
        assert not result.exists()
        assert epoch <= last_epoch(folder / "run") < 12
    subprocess.run(
        [sys.executable, "-m", "tests.fit_child", str(folder / "run"), str(result)], check=True
    )
    with np.load(result) as found:
        return dict(found)


class TestKilled:
    @functools.cached_property
    def whole(self):
        """The bits of the run that nobody killed, and that wrote no checkpoints."""
        return fit_child.bits(fit_child.train(None))

    def assert_same(self, found):
        assert found.keys() == self.whole.keys()
        for name, want in self.whole.items():
            assert found[name].tobytes() == want.tobytes()

    def test_a_killed_run_ends_with_the_bits_of_one_that_never_was(self, tmp_path):
        self.assert_same(killed_and_resumed(tmp_path, [1, 5], seed=0))

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_at_many_moments(self, tmp_path, seed):
        self.assert_same(killed_and_resumed(tmp_path, [1, 2, 4, 5, 7, 8], seed=seed))


def test_what_is_not_asked_for_is_not_imported():
    code = (
        "import sys, hgrad_jax; "
        "assert not {'orbax', 'rich', 'matplotlib', 'flax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_epochs": 0}, "num_epochs is 0; it must be a positive int"),
            ({"num_epochs": 2.0}, "num_epochs is 2.0; it must be a positive int"),
            ({"steps_per_epoch": 0}, "steps_per_epoch is 0; it must be a positive int"),
            ({"num_epochs": 2**20, "steps_per_epoch": 2**12}, r"not below 2\*\*31"),
            ({"batch_fn": minibatches(300)}, "batch_size is 300, but data has 200 examples"),
            ({"valid": 1.0}, "valid is given, but metrics is None"),
            ({"target": hg.Target("train_loss", 0.1)}, "target follows 'train_loss'.*none: pass"),
            (
                {"metrics": METRICS, "early_stopping": hg.EarlyStopping()},
                "early_stopping follows 'valid_loss'; the metrics are train_accuracy, train_loss",
            ),
            ({"metrics": lambda params, data: 1.0}, "metrics returned .* a dict of scalars"),
            (
                {"metrics": lambda params, data: {"a": data.labels}},
                "metrics returned .* a dict of scalars",
            ),
            ({"loss": lambda *args: jnp.ones(2)}, r"loss returned float32 of shape \(2,\)"),
            ({"hparams_axes": 0}, "is a schedule of shape"),
            ({"epoch_hparams": lambda h, epoch: None}, "epoch_hparams returned None; it must"),
        ],
        ids=lambda x: "" if isinstance(x, str) else "-".join(x),
    )
    def test_is_named_before_any_step(self, settings, message):
        with pytest.raises(ValueError, match=message):
            fit_digits(**settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"rule": LOSS}, "transition is .*; build one with hg.momentum"),
            ({"metrics": METRICS, "target": 0.3}, r"target is 0.3; it must be an hg.Target\("),
            ({"hparams": {"learning_rate": 1, "momentum": 0.9}}, "write 1.0 for 1"),
            (
                {"epoch_hparams": lambda h, epoch: h if epoch < 2 else HPARAMS},
                r"epoch_hparams asks a traced array .*`if`.*; write jnp.where or jax.lax.cond",
            ),
            (
                {"epoch_hparams": lambda h, epoch: h | {"learning_rate": [0.1, 0.2, 0.3][epoch]}},
                r"epoch_hparams asks a traced array .*; write .* jnp.asarray\(values\)\[i\]",
            ),
            (
                {"batch_fn": lambda d, t, k: d if t else None},
                "a step .* asks a traced array for its",
            ),
            (
                {"metrics": lambda params, data: {"a": float(jnp.sum(data.inputs))}},
                "metrics asks a traced array for its value",
            ),
        ],
        ids=lambda x: "" if isinstance(x, str) else "-".join(x),
    )
    def test_of_the_wrong_type(self, settings, message):
        with pytest.raises(TypeError, match=message):
            fit_digits(**settings)

    @pytest.mark.parametrize("part", ["train", "valid", "train_sample"])
    def test_data_that_are_not_finite(self, part):
        train, valid = digits()
        inputs = valid.inputs.copy()
        inputs[4, 2] = np.nan
        parts: dict[str, Any] = {"train": train, "valid": valid} | {
            part: Dataset(inputs, valid.labels)
        }
        with pytest.raises(ValueError, match=rf"{part}\.inputs has 1 numbers .* at example 4"):
            fit_digits(metrics=METRICS, **parts)

    def test_labels_that_are_no_class(self):
        train, _ = digits()
        wrong = Dataset(train.inputs, train.labels + 1)
        with pytest.raises(ValueError, match=r"train_loss is nan at the init.*validate_examples"):
            fit_digits(train=wrong, num_epochs=1, metrics=METRICS)

    def test_tracing(self):
        with pytest.raises(TypeError, match="fit cannot run inside jit"):
            jax.jit(lambda params: hg.fit(hg.sgd(quadratic), params, {}, 0.0, num_epochs=1))(1.0)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"patience": 0}, "patience is 0; it must be a positive int, or None"),
            ({"min_change": -1.0}, "min_change is -1.0; it must not be negative"),
        ],
        ids=["patience", "min_change"],
    )
    def test_early_stopping(self, settings, message):
        with pytest.raises(ValueError, match=message):
            hg.EarlyStopping(**settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hg.Target("loss", np.nan), "value is nan; it must be a number"),
        (lambda: hg.EarlyStopping(cast(Any, 3)), "metric is 3; it must be a name"),
        (
            lambda: hg.Target("loss", 0.1, is_maximized=cast(Any, "no")),
            "is_maximized is 'no'; it must be",
        ),
    ],
    ids=["nan", "metric", "is_maximized"],
)
def test_settings_of_stopping(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_numbers_that_are_nan_are_refused_before_any_step():
    with pytest.raises(ValueError, match=r"hparams\['learning_rate'\] is NaN"):
        hg.fit(hg.sgd(quadratic), 1.0, {"learning_rate": np.nan}, None, num_epochs=1)
    with pytest.raises(ValueError, match="params is NaN, and so would be all"):
        hg.fit(hg.sgd(quadratic), np.nan, {"learning_rate": 0.1}, None, num_epochs=1)

"""The history of `fit`, its checkpoints, and what it refuses."""

import functools
import json
import shutil
import subprocess
import sys
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import hgrad_jax as hg
from hgrad_jax.data import Dataset, minibatches, with_replacement
from hgrad_jax.models import MLP, classification_loss, classification_metrics
from hgrad_jax.training.store import HASHES
from tests.shared import fit_child
from tests.shared.fits import (
    HPARAMS,
    KEY,
    LOSS,
    METRICS,
    digits,
    fit_digits,
    fit_quadratic,
    quadratic,
)


def same_bits(out, other):
    ours, theirs = fit_child.bits(out), fit_child.bits(other)
    assert ours.keys() == theirs.keys()
    return all(ours[k].tobytes() == theirs[k].tobytes() for k in ours)


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
        with pytest.raises(hg.CheckpointError, match=r"is damaged \(its file about/metadata is a"):
            fit_digits(num_epochs=2, **with_checkpoints(tmp_path / "run"))
        (tmp_path / "run" / "2" / HASHES).unlink()
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

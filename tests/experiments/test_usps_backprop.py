import hashlib
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from matplotlib.image import imread
from scipy.io import savemat

import hgrad_jax as hg
from experiments.common import parse
from experiments.usps_backprop import __main__ as usps_backprop
from experiments.usps_backprop import problem, report
from hgrad_jax.data import Dataset, DataUnavailableError, load, load_digits, load_usps, usps
from hgrad_jax.data.originals import DATA_DIR_VARIABLE

SMALL = [
    *("--learning-rates", "0.2", "1", "--weight-decays", "0", "0.01", "--x64"),
    *("--num-hidden", "5", "--num-steps", "20", "--batch-size", "3"),
]
# The originals, where somebody has put them: named by the variable, or beside the repository.
BESIDE = pathlib.Path(__file__).parents[3] / "shared" / "data"
ORIGINALS = pathlib.Path(os.environ.get(DATA_DIR_VARIABLE) or BESIDE)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache, and no folder from the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)


def by_hand(rate, momentum, decay, *, num_hidden=5, num_steps=20, batch_size=3):
    """The recursion as the exercise writes it, in numpy: losses on the parts after each step."""
    digits = load_digits()
    parts = [
        (digits.inputs[i:j].T.astype(float), np.eye(10)[digits.labels[i:j]].T)
        for i, j in ((0, 1000), (1000, 1400), (1400, 1797))
    ]
    theta = 0.1 * np.cos(np.arange(74 * num_hidden))
    first = theta[: 64 * num_hidden].reshape(num_hidden, 64, order="F")
    last = theta[64 * num_hidden :].reshape(10, num_hidden, order="F")
    velocities = [np.zeros_like(first), np.zeros_like(last)]

    def forward(x):
        hidden = 1 / (1 + np.exp(-first @ x))
        scores = last @ hidden
        scores = scores - scores.max(axis=0)
        return hidden, scores - np.log(np.exp(scores).sum(axis=0))

    path = []
    for step in range(num_steps):
        at = np.arange(step * batch_size, (step + 1) * batch_size) % 1000
        x, target = parts[0][0][:, at], parts[0][1][:, at]
        hidden, log_probs = forward(x)
        delta = (np.exp(log_probs) - target) / batch_size
        gradients = [
            (last.T @ delta * hidden * (1 - hidden)) @ x.T + decay * first,
            delta @ hidden.T + decay * last,
        ]
        velocities = [momentum * v - g for v, g in zip(velocities, gradients, strict=True)]
        first, last = first + rate * velocities[0], last + rate * velocities[1]
        logs = [forward(x)[1] for x, _ in parts]
        losses = [-(t * log).sum(axis=0).mean() for log, (_, t) in zip(logs, parts, strict=True)]
        errors = [
            (t.argmax(0) != log.argmax(0)).mean() for log, (_, t) in zip(logs, parts, strict=True)
        ]
        penalty = decay / 2 * ((first**2).sum() + (last**2).sum())
        path.append((losses, errors, penalty))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("usps")
    return usps_backprop.main([*SMALL, "--out", str(out)]), out


class TestUspsBackprop:
    def test_every_setting_is_the_recursion_by_hand(self, done):
        found, _ = done
        assert len(found.settings) == 8
        assert found.chunk_size == 8  # all in one call
        for i, setting in enumerate(found.settings):
            path = by_hand(*setting.values())
            losses, errors, penalty = path[-1]
            for part, loss, error in zip(report.PARTS, losses, errors, strict=True):
                measured = {name: x[i, 0] for name, x in found.results[part].items()}
                np.testing.assert_allclose(measured["classification_loss"], loss, rtol=1e-9)
                np.testing.assert_allclose(measured["loss"], loss + penalty, rtol=1e-9)
                np.testing.assert_allclose(measured["error"], error, rtol=1e-6)
            for j, part in enumerate(("train", "validation")):
                want = [losses[j] for losses, _, _ in path]
                np.testing.assert_allclose(found.results["path"][part][i, 0], want, rtol=1e-9)

    def test_early_stopping_measures_at_the_least_validation_loss(self):
        """At learning rate 1 and momentum 0.9 the loss goes up and down."""
        words = "--early-stopping --x64 --num-hidden 5 --num-steps 20 --batch-size 3"
        config = parse(usps_backprop.Config, words.split(), "")
        with jax.enable_x64(True):
            data = problem.load_data(config)
            setting = {"learning_rate": 1.0, "momentum": 0.9, "weight_decay": 0.01}
            found = hg.sweep(usps_backprop.make_run(config), [setting], data).results
        path = by_hand(1.0, 0.9, 0.01)
        best = int(np.argmin([losses[1] for losses, _, _ in path]))
        assert best < 19
        assert found["steps"][0, 0] == best + 1
        for part, loss in zip(report.PARTS, path[best][0], strict=True):
            np.testing.assert_allclose(found[part]["classification_loss"][0, 0], loss, rtol=1e-9)

    def test_results_are_one_line_and_two_figures_a_weight_decay(self, done, tmp_path):
        found, out = done
        (line,) = (out / "result.jsonl").read_text().splitlines()
        read = json.loads(line)
        assert read["gradient_error"] < 1e-6
        assert read["settings"] == [dict(s) for s in found.settings]
        best = read["best"]
        place = read["settings"].index(best["setting"])
        losses = read["results"]["validation"]["classification_loss"]
        assert losses[place] == min(losses)
        assert best["test"]["error"] == pytest.approx(read["results"]["test"]["error"][place])
        assert read["seconds"] < read["compile_seconds"]
        for name in ("heat_map", "curves"):
            images = [imread(out / f"{name}_weight_decay_{x}.png") for x in (0, 0.01)]
            for image in images:
                assert min(image.shape[:2]) >= 300
                assert image[..., :3].std() > 0.05
            assert images[0].shape != images[1].shape or (images[0] != images[1]).any()
        one = found.select({"weight_decay": 0.01})
        assert [path.name for path in report.draw(one, tmp_path)] == [
            "heat_map.png",
            "curves.png",
        ]

    def test_the_table_marks_the_best(self, done):
        found, _ = done
        lines = report.table(found).splitlines()
        assert len(lines) == 2 + 8
        assert lines[0].split() == ["train", "validation", "test"]
        (marked,) = [i for i, line in enumerate(lines[2:]) if line.endswith("validation loss")]
        assert marked == found.best("validation.classification_loss").place

    def test_the_gradient_check_finds_a_wrong_gradient(self, monkeypatch):
        config = parse(usps_backprop.Config, SMALL, "")
        data = problem.load_data(config)
        assert usps_backprop.check_gradient(config, data).is_ok
        loss = usps_backprop.loss

        def stopped(model, params, hparams, batch):
            fixed = params | {"Dense_0": jax.lax.stop_gradient(params["Dense_0"])}
            return loss(model, fixed, hparams, batch)

        monkeypatch.setattr(usps_backprop, "loss", stopped)
        with pytest.raises(hg.HypergradientError, match="Dense_0"):
            usps_backprop.check_gradient(config, data).raise_if_wrong()

    def test_by_default_fourteen_settings_in_float32(self):
        config = usps_backprop.Config()
        assert len(config.learning_rates) * len(config.momenta) * len(config.weight_decays) == 14
        data = problem.load_data(config)
        params = problem.initial_params(config, data.train.inputs)
        assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
        assert [len(part.labels) for part in data] == [1000, 400, 397]

    def test_the_files_are_asked_for_where_no_folder_is_named(self, tmp_path):
        message = r"error: usps: there is no data_train\.mat, .* pass it as data_dir"
        with pytest.raises(SystemExit, match=message):
            usps_backprop.main(["--data", "usps", "--out", str(tmp_path)])


class TestLoadUsps:
    @staticmethod
    def write(path, labels):
        pixels = np.arange(256 * len(labels)).reshape(256, -1) % 256 / 255
        savemat(path, {"inputs": pixels, "target": np.eye(10, dtype=np.uint8)[labels].T})
        return np.float32(pixels)

    def test_synthetic_files(self, tmp_path, monkeypatch):
        labels = {"data_train.mat": [3, 0, 9], "data_validation.mat": [1], "data_test.mat": [5, 5]}
        pixels = {name: self.write(tmp_path / name, each) for name, each in labels.items()}
        files = tuple(
            file._replace(sha256=hashlib.sha256((tmp_path / file.name).read_bytes()).hexdigest())
            for file in usps.SOURCE.files
        )
        monkeypatch.setattr(usps, "SOURCE", usps.SOURCE._replace(files=files))
        for part, name in zip(load_usps(tmp_path), labels, strict=True):
            assert isinstance(part, Dataset)
            assert part.inputs.dtype == np.float32
            assert part.labels.tolist() == labels[name]
            images = pixels[name].T.reshape(-1, 16, 16, 1)
            np.testing.assert_array_equal(part.inputs, images)
        assert load("usps", tmp_path).test.labels.tolist() == [5, 5]

    def test_other_arrays_are_refused(self, tmp_path):
        path = tmp_path / "a.mat"
        savemat(path, {"inputs": np.zeros((256, 3)), "target": np.zeros((10, 4))})
        with pytest.raises(ValueError, match=r"inputs \[256, 3\] and target \[10, 4\], not"):
            usps.read_mat(path)
        savemat(path, {"x": np.zeros(3)})
        with pytest.raises(ValueError, match=r"inputs \[\] and target \[\], not"):
            usps.read_mat(path)

    def test_missing_files(self, tmp_path):
        with pytest.raises(DataUnavailableError, match=r"usps: there is no data_train\.mat"):
            load_usps(tmp_path)

    @pytest.mark.skipif(
        not (ORIGINALS / "usps/data_train.mat").is_file(), reason="the files are not there"
    )
    def test_the_originals(self):
        parts = load_usps(ORIGINALS)
        assert [part.inputs.shape for part in parts] == [(n, 16, 16, 1) for n in (1000, 1000, 9000)]
        for part in parts:
            assert np.bincount(part.labels).tolist() == [len(part.labels) // 10] * 10
            assert (part.inputs.min(), part.inputs.max()) == (0, 1)
            levels = 255 * part.inputs.astype(float)
            np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
        assert parts.train.labels[:12].tolist() == [*range(10), 0, 1]

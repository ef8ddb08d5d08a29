import functools
import io
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

import hgrad_jax as hg
from experiments.common import environment, parse
from experiments.hyper_cleaning import __main__ as hyper_cleaning
from experiments.hyper_cleaning import problem, report, tuning
from experiments.hyper_cleaning.accuracy import train_on
from experiments.hyper_cleaning.config import Config
from experiments.hyper_cleaning.tuning import EXACT, onto_box_and_ball
from hgrad_jax.data import load, shared_examples
from hgrad_jax.data.originals import DATA_DIR_VARIABLE
from hgrad_jax.tuning import records

SMALL = [
    *("--num-train", "200", "--num-valid", "200", "--num-steps", "60"),
    *("--num-meta-steps", "14", "--num-final-steps", "200"),
]
# The originals, where somebody has put them: named by the variable, or beside the repository.
BESIDE = pathlib.Path(__file__).parents[3] / "shared" / "data"
ORIGINALS = pathlib.Path(os.environ.get(DATA_DIR_VARIABLE) or BESIDE) / "mnist"


def config_of(*words):
    return parse(Config, [*SMALL, *words], "")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The result, and its folder."""
    out = tmp_path_factory.mktemp("cleaning")
    (result,) = hyper_cleaning.main([*SMALL, "--out", str(out)])
    return result, out


class TestResult:
    def test_wrong_labels_are_found(self, done):
        result, _ = done
        found = result["found"]
        assert set(found) == {"Reversible", "Direct", "Truncated(6)", "DrMAD"}
        assert result["num_corrupted"] == 100
        assert found[EXACT]["f1"] > 0.85
        assert found[EXACT]["precision"] > 0.85
        assert all(0.5 < each["f1"] <= 1 for each in result["found_otherwise"].values())

    def test_exact_hypergradients_agree_and_others_do_not(self, done):
        found = done[0]["found"]
        assert found[EXACT]["is_restored"] is True
        assert found["Direct"]["is_restored"] is None
        assert found["Direct"]["relative_error"] < 1e-5
        assert found["Direct"]["num_found"] == pytest.approx(found[EXACT]["num_found"], abs=2)
        assert found["Direct"]["f1"] == pytest.approx(found[EXACT]["f1"], abs=0.02)
        for name in ("Truncated(6)", "DrMAD"):
            assert found[name]["relative_error"] > 0.05
            assert found[name]["cosine"] < 0.999

    def test_what_is_left_is_better_to_train_on(self, done):
        accuracy = done[0]["accuracy"]
        by_name = {name: row["test_accuracy"] for name, row in accuracy.items()}
        for suffix in ("", ", with validation"):
            dirty, clean, oracle = (
                by_name[name + suffix]
                for name in ("all, as given", "those not found", "those not wrong (oracle)")
            )
            assert dirty < clean
            assert dirty < oracle
        counts = [row["num_examples"] for row in accuracy.values()]
        left = 200 - done[0]["found"][EXACT]["num_found"]
        assert counts == [200, left, 100, 200, 400, left + 200, 300]

    def test_the_record_is_one_line_with_its_circumstances(self, done):
        result, out = done
        (line,) = (out / "result.jsonl").read_text().splitlines()
        read = json.loads(line)
        assert read["environment"] == environment()
        assert read["config"]["num_train"] == 200
        assert read["seed"] == 0
        assert read["found"][EXACT]["f1"] == result["found"][EXACT]["f1"]
        assert read["found"][EXACT]["temp_bytes"] < read["found"]["Direct"]["temp_bytes"]

    @pytest.mark.parametrize("name", ["progress", "weights", "found"])
    def test_a_figure_is_an_image_with_something_on_it(self, done, name):
        image = imread(done[1] / "seed_0" / f"{name}.png")
        assert min(image.shape[:2]) >= 400
        assert image[..., :3].std() > 0.05

    def test_the_same_command_goes_on_from_its_records(self, done, capsys):
        """With nothing to tune: only what the records do not hold is computed again."""
        result, out = done
        before = {path: path.read_bytes() for path in out.rglob("meta_steps.jsonl")}
        assert len(before) == 4
        (again,) = hyper_cleaning.main([*SMALL, "--no-compare", "--out", str(out)])
        assert again["accuracy"] == result["accuracy"]
        assert again["found"] == {EXACT: result["found"][EXACT]}
        assert {path: path.read_bytes() for path in out.rglob("meta_steps.jsonl")} == before
        shown = capsys.readouterr().out
        assert "those not found" in shown
        assert "of 100 wrong labels (seed 0)" in shown

    def test_the_tables_fit_a_terminal_and_have_means_and_ranges(self, done):
        other = json.loads(json.dumps(done[0], default=float))
        accuracy = done[0]["accuracy"]["all, as given"]["test_accuracy"]
        other["accuracy"]["all, as given"]["test_accuracy"] = accuracy + 0.1
        text = io.StringIO()
        report.print_tables(Console(file=text, width=80), [done[0], other])
        low, mean, high = (100 * (accuracy + x) for x in (0, 0.05, 0.1))
        assert f"{mean:.1f}% ({low:.1f}-{high:.1f})" in text.getvalue()
        assert "means of 2 seeds" in text.getvalue()
        assert "…" not in text.getvalue()

    def test_another_configuration_has_another_folder(self, done):
        out = str(done[1])
        mine = tuning.records_folder(config_of("--out", out), 0)
        assert mine.exists()
        for words in (["--num-steps", "61"], ["--corrupted", "0.4"], ["--hidden", "3"]):
            other = tuning.records_folder(config_of("--out", out, *words), 0)
            assert other != mine
        assert tuning.records_folder(config_of("--out", out), 1) != mine
        same = tuning.records_folder(config_of("--out", out, "--threshold", "0.2"), 0)
        assert same == mine

    def test_a_tuning_that_was_killed_ends_with_the_same_bits(self, done, tmp_path, monkeypatch):
        config = config_of("--out", str(tmp_path))
        data = problem.load_data(config, 0)

        class Killed(BaseException):
            pass

        writes = []

        def counted(*args):
            writes.append(args)
            if len(writes) == 8:
                raise Killed
            return replace(*args)

        replace = os.replace
        with monkeypatch.context() as patch:
            patch.setattr(records.os, "replace", counted)
            with pytest.raises(Killed):
                tuning.clean(config, data, 0, "Direct")
        assert len(writes) == 8
        resumed = tuning.clean(config, data, 0, "Direct")
        # Read from the records of the tuning that was not killed.
        whole = tuning.clean(config_of("--out", str(done[1])), data, 0, "Direct")
        np.testing.assert_array_equal(resumed.weights, whole.weights)
        np.testing.assert_array_equal(resumed.valid_loss, whole.valid_loss)


class TestData:
    @pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
    def test_a_corrupted_label_is_any_other_class(self, fraction):
        labels = np.random.RandomState(0).randint(0, 10, 20_000)
        found = problem.corrupt(labels, fraction, seed=3)
        is_wrong = found != labels
        assert is_wrong.sum() == round(fraction * len(labels))
        assert found.min() == 0
        assert found.max() == 9
        shifts = np.bincount((found - labels)[is_wrong] % 10, minlength=10)
        assert shifts[0] == 0
        expected = is_wrong.sum() / 9
        assert np.all(np.abs(shifts[1:] - expected) < 4 * np.sqrt(expected))
        np.testing.assert_array_equal(found, problem.corrupt(labels, fraction, seed=3))
        assert np.any(found != problem.corrupt(labels, fraction, seed=4))

    def test_the_parts_share_no_example_and_the_true_labels_stay_apart(self):
        data = problem.load_data(config_of(), 0)
        everything = load("digits")
        inputs = {
            "train": (np.asarray(data.train.inputs),),
            "valid": (np.asarray(data.valid.inputs),),
            "test": (np.asarray(data.test.inputs),),
        }
        for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
            assert not len(shared_examples(inputs[one], inputs[other]))
        assert data.is_corrupted.sum() == 100
        rows = {row.tobytes(): label for row, label in zip(*everything.train, strict=True)}
        assert [rows[row.tobytes()] for row in inputs["train"][0]] == data.true_labels.tolist()
        right = [rows[row.tobytes()] for row in inputs["valid"][0]]
        assert right == np.asarray(data.valid.labels).tolist()
        np.testing.assert_array_equal(data.test.labels, everything.test.labels)

    def test_a_training_sees_only_what_it_is_given(self):
        """On one class alone it comes to know that class alone."""
        config = config_of("--num-final-steps", "50", "--batch-fraction", "0.05")
        data = problem.load_data(config, 0)
        places = np.zeros(200, np.int32)
        of_class = np.flatnonzero(np.asarray(data.test.labels) == 3)[:20]
        places[: len(of_class)] = of_class
        model = problem.make_model(config)
        inputs = jnp.asarray(data.test.inputs)
        start = problem.initial_params(model, inputs, jax.random.key(0))
        trained = train_on(
            config, data.test, places, np.int32(len(of_class)), start, jax.random.key(0)
        )
        scores = problem.logits(model, trained, inputs)
        assert np.all(np.argmax(scores, axis=1) == 3)


class TestProjection:
    @pytest.mark.parametrize("radius", [None, 0.5, 3.0, 100.0])
    def test_it_is_the_nearest_point(self, radius):
        """By the inequality that says so: (x - p) . (z - p) <= 0 for every z that is allowed."""
        draws, bound = np.random.RandomState(1), np.inf if radius is None else radius
        with jax.enable_x64(True):
            project = jax.jit(jax.vmap(lambda x: onto_box_and_ball(x, radius)))
            many = draws.normal(0.4, 1.0, (20, 12))
            ends = np.asarray(project(many))
            np.testing.assert_allclose(project(ends), ends, atol=1e-9)
        assert ends.min() >= 0
        assert ends.max() <= 1
        assert ends.sum(axis=1).max() <= bound + 1e-9
        for x, p in zip(many, ends, strict=True):
            z = draws.uniform(0, 1, (500, 12)) ** draws.uniform(0.2, 5, (500, 1))
            z *= np.minimum(1, bound / z.sum(1))[:, None]
            assert np.all((z - p) @ (x - p) <= 1e-9)

    def test_the_weights_of_a_tuning_stay_in_the_ball(self, tmp_path):
        words = ("--l1-radius", "80", "--num-meta-steps", "4", "--out", str(tmp_path))
        config = config_of(*words)
        data = problem.load_data(config, 0)
        path = tuning.clean(config, data, 0, "Direct").weights
        np.testing.assert_allclose(path[0], 0.4, rtol=1e-6)
        assert np.all(path >= 0)
        assert np.all(path <= 1)
        assert np.all(path.sum(axis=1) <= 80.001)
        assert path[-1].std() > 0.05


@pytest.mark.slow
def test_a_hidden_layer_starts_at_random_and_is_tuned_through():
    config = config_of("--hidden", "4", "--num-steps", "3", "--num-train", "40")
    data, weights = problem.load_data(config, 1), tuning.first_weights(config)
    optimizer = tuning.make_optimizer(config)
    params = functools.partial(
        problem.initial_params, problem.make_model(config), data.train.inputs
    )
    start = params(jax.random.key(0))
    assert start["Dense_0"]["kernel"].shape == (64, 4)
    assert start["Dense_0"]["kernel"].std() > 0.05
    step = jax.jit(
        lambda: hg.meta_step(
            *tuning.problem(config, 1, hg.Direct()),
            params,
            weights,
            data.train,
            data.valid,
            optimizer=optimizer,
            opt_state=optimizer.init(weights),
            key=jax.random.key(0),
        )
    )()
    gradient = step.gradient["weights"]
    assert 0 < (gradient > 0).sum() < (gradient != 0).sum() == 12  # 3 batches of 4
    # Adam's first step is the sign of the hypergradient times its rate, and the box cuts it off.
    np.testing.assert_allclose(step.hparams["weights"], 1 - 0.1 * (gradient > 0), atol=1e-3)


@pytest.mark.compiled  # in which operation it overflows first
def test_a_diverging_training_stops_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "adjoints", lambda config: {EXACT: hg.Direct()})
    words = [*SMALL, "--hidden", "3", "--learning-rate", "1e30", "--num-steps", "5"]
    words += ["--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"error: meta-step 0: .*lower the learning rate"):
        hyper_cleaning.main(words)


@pytest.mark.slow
@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="MNIST's original files are not here")
def test_mnist(tmp_path):
    (result,) = hyper_cleaning.main(
        ["--data", "mnist", "--data-dir", str(ORIGINALS), "--no-compare", "--out", str(tmp_path)]
    )
    assert result["found"][EXACT]["f1"] > 0.9

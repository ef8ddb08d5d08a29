import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import keystr
from jax.tree_util import tree_leaves_with_path as leaves_with_path
from matplotlib.image import imread

import hgrad_jax as hg
from experiments import approximations, tune_digits
from experiments.common import environment, option, parse, write_json_line

TINY = [
    *("--num-steps", "10", "--num-meta-steps", "2", "--num-runs", "2", "--hidden", "5"),
    *("--num-train", "40", "--num-valid", "50", "--batch-size", "20", "--learning-rate", "0.2"),
]


@dataclasses.dataclass(frozen=True)
class Config:
    count: int = option(3, "a count, at most 100% of it")
    rate: float | None = option(None, "a rate")
    kind: str = option("a", "a kind", ("a", "b"))
    is_on: bool = option(True, "a switch")
    sizes: tuple[int, ...] = option((1, 2), "sizes")

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count is negative")


class TestCommon:
    def test_every_kind_of_option(self):
        assert parse(Config, [], "") == Config()
        words = "--count 5 --rate 1e-3 --kind b --no-is-on --sizes 7 8 9"
        assert parse(Config, words.split(), "") == Config(5, 1e-3, "b", False, (7, 8, 9))

    def test_help_explains_every_option(self, capsys):
        with pytest.raises(SystemExit) as stop:
            parse(Config, ["--help"], "What it does.")
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "What it does." in text
        for part in ("100% of it (default: 3)", "sizes (default: 1 2)", "{a,b}", "--no-is-on"):
            assert part in text

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--kind c", "invalid choice: 'c'"),
            ("--count x", "invalid int value"),
            ("--count -1", "count is negative"),
        ],
    )
    def test_wrong_options_end_with_a_message(self, words, message, capsys):
        with pytest.raises(SystemExit) as stop:
            parse(Config, words.split(), "")
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    def test_environment_is_json_and_names_the_library(self):
        found = json.loads(json.dumps(environment()))
        assert found["versions"]["jax"] == jax.__version__
        assert found["versions"]["hgrad_jax"]
        assert found["dtype"] == str(jnp.result_type(float))

    def test_json_lines_are_appended_and_plain(self, tmp_path):
        path = tmp_path / "new" / "lines.jsonl"
        write_json_line(path, {"a": jnp.arange(2), "b": np.float32(0.5), "c": (1, tmp_path)})
        write_json_line(path, {"a": np.array([np.nan, 1.0]), "b": float("inf")})
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert lines[0] == {"a": [0, 1], "b": 0.5, "c": [1, str(tmp_path)]}
        assert lines[1] == {"a": [None, 1.0], "b": None}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The result, and its folder."""
    out = tmp_path_factory.mktemp("tune")
    return tune_digits.main([*TINY, "--out", str(out)]), out


def meta_steps(out):
    (path,) = out.glob("*/meta_steps.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestTuneDigits:
    def test_the_result_is_one_line_with_its_circumstances(self, done):
        result, out = done
        (line,) = (out / "result.jsonl").read_text().splitlines()
        read = json.loads(line)
        assert read["config"]["num_steps"] == 10
        assert read["seed"] == 0
        assert read["environment"] == environment()
        assert read["num_hparams"] == 10 + 1 + 64 + 5
        assert read["is_restored"] is True
        assert read["temp_bytes"] > 0
        for when in ("before", "after"):
            assert all(0 < loss < 3 for loss in read[when]["validation_loss"])
            assert all(0 <= error <= 1 for error in read[when]["test_error"])
        # A bit store of a short run has spent log2(1 / decay) bits a step, give or take a byte.
        assert read["bits_per_step"] == pytest.approx(read["entropy_per_step"], abs=0.8)
        assert np.mean(result["after"]["validation_loss"]) < np.mean(
            result["before"]["validation_loss"]
        )

    def test_every_meta_step_is_recorded(self, done):
        lines = meta_steps(done[1])
        assert [line["meta_step"] for line in lines] == [0, 1]
        first, second = (line["hparams"] for line in lines)
        np.testing.assert_allclose(first["log_learning_rate"], np.log(0.2), rtol=1e-6)
        # Adam's first step is the sign of the gradient times its rate.
        moved = np.subtract(second["log_learning_rate"], first["log_learning_rate"])
        np.testing.assert_allclose(np.abs(moved), 0.1, rtol=1e-2)

    def test_the_same_command_finds_its_tuning_and_another_does_not(self, done):
        result, out = done
        tune_digits.main([*TINY, "--out", str(out)])
        again = json.loads((out / "result.jsonl").read_text().splitlines()[-1])
        np.testing.assert_array_equal(again["after"]["test_loss"], result["after"]["test_loss"])
        config = parse(tune_digits.Config, [*TINY, "--seed", "1", "--out", str(out)], "")
        assert not tune_digits.records_folder(config).exists()

    @pytest.mark.parametrize("name", ["validation_loss", "learning_rate", "regularization"])
    def test_a_figure_is_an_image_with_something_on_it(self, done, name):
        image = imread(done[1] / f"{name}.png")
        assert min(image.shape[:2]) >= 400
        assert image[..., :3].std() > 0.05

    def test_the_hypergradients_equal_those_of_stored_training(self, done):
        config = parse(tune_digits.Config, TINY, "")
        data = tune_digits.load_data(config)
        problem = tune_digits.problem(config, data.train.inputs, hg.Direct())
        first = tune_digits.initial_hparams(config, data.train.inputs)
        names = [keystr(path, simple=True, separator=".") for path, _ in leaves_with_path(first)]

        @jax.jit
        def by_storing(hparams, key):
            opt_state = problem["optimizer"].init(hparams)
            given = {"opt_state": opt_state, "train": data.train, "valid": data.valid, "key": key}
            return hg.meta_step(hparams=hparams, **given, **problem)

        for k, line in enumerate(meta_steps(done[1])):
            hparams = [jnp.float32(line["hparams"][name]) for name in names]
            hparams = jax.tree.unflatten(jax.tree.structure(first), hparams)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), k)
            stored = by_storing(hparams, key)
            np.testing.assert_allclose(line["value"], stored.found.value, rtol=1e-5)
            for name, want in zip(names, jax.tree.leaves(stored.gradient), strict=True):
                error = np.linalg.norm(np.subtract(line["hypergradient"][name], want))
                assert error < 1e-4 * np.linalg.norm(want)

    def test_the_parts_of_the_data_are_disjoint(self):
        data = tune_digits.load_data(tune_digits.Config())
        sizes = [len(part.labels) for part in data]
        assert sizes == [300, 1000, 359]
        rows = [np.asarray(part.inputs) for part in data]
        everything = {row.tobytes() for part in rows for row in part}
        assert len(everything) == sum(len({row.tobytes() for row in part}) for part in rows)

    def test_a_diverging_training_stops_with_the_reason_and_leaves_a_record(
        self, tmp_path, monkeypatch
    ):
        # Storing the training compiles sooner, and what the flags do is the same.
        by_storing = functools.partial(tune_digits.problem, adjoint=hg.Direct())
        monkeypatch.setattr(tune_digits, "problem", by_storing)
        with pytest.raises(SystemExit, match=r"error: meta-step 0: .*lower the learning rate"):
            tune_digits.main([*TINY, "--learning-rate", "1e9", "--out", str(tmp_path)])
        (line,) = meta_steps(tmp_path)
        assert "lower the learning rate" in line["problem"]
        assert not (tmp_path / "result.jsonl").exists()

    def test_help(self, capsys):
        with pytest.raises(SystemExit) as stop:
            tune_digits.main(["--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for field in dataclasses.fields(tune_digits.Config):
            assert "--" + field.name.replace("_", "-") in text

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--data digitz", "invalid choice: 'digitz'"),
            ("--momentum 1", "momentum is 1.0; it must be between 0 and 1"),
            ("--num-steps 0", "num_steps is 0; it must be positive"),
            ("--batch-size 500", "batch_size is 500, more than num_train"),
        ],
    )
    def test_wrong_options(self, words, message, capsys):
        with pytest.raises(SystemExit) as stop:
            tune_digits.main(words.split())
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--data", "mnist", "--data-dir", "nowhere"], "not a folder"),
            (["--num-valid", "5000"], "there are 1438 examples"),
        ],
    )
    def test_missing_data_stop_with_the_reason(self, words, message, tmp_path):
        with pytest.raises(SystemExit, match=message):
            tune_digits.main([*words, "--out", str(tmp_path)])


class TestApproximations:
    def test_the_study_compares_every_method_and_draws_it(self, tmp_path, capsys):
        (found,) = approximations.main(
            ["--num-steps", "30", "--batch-size", "20", "--waypoints", "3", "--out", str(tmp_path)]
        )
        rows = {row.name: row for row in found.rows}
        assert {"DrMAD", "DrMAD2", "Implicit", "3 waypoints", "2 waypoints, undone"} <= set(rows)
        # Momentum 0.95 allows 90 steps to be undone: two waypoints are enough for 30.
        for exact in ("Checkpointed", "2 waypoints, undone"):
            error = rows[exact].relative_error
            assert error is not None
            assert error < 1e-4
        assert rows["DrMAD"].cosine != pytest.approx(1, abs=1e-4)
        (record,) = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
        assert [row["name"] for row in record["rows"]] == list(rows)
        assert record["config"]["num_steps"] == [30]
        assert imread(tmp_path / "cosines.png").shape[0] > 400
        assert "8860 hyperparameters, 30 steps" in capsys.readouterr().out

    def test_bad_input(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            approximations.main(["--num-steps", "5"])
        assert "num_steps is 5; the study starts at 20" in capsys.readouterr().err
        with pytest.raises(SystemExit, match=r"error: .*mnist"):
            approximations.main(["--data", "mnist", "--data-dir", str(tmp_path)])

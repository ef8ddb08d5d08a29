"""What all experiments share: the command line, its --help and its refusals, and JSON lines."""

import dataclasses
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.approximations import __main__ as approximations
from experiments.bench import __main__ as bench
from experiments.bench_forward import __main__ as bench_forward
from experiments.bench_sweep import __main__ as bench_sweep
from experiments.common import environment, option, parse, write_json_line
from experiments.drmad_study import __main__ as drmad_study
from experiments.forward_gradient_cnn import __main__ as forward_gradient_cnn
from experiments.forward_reverse import __main__ as forward_reverse
from experiments.hyper_cleaning import __main__ as hyper_cleaning
from experiments.optimizers import __main__ as optimizers
from experiments.penguins import __main__ as penguins
from experiments.tune_digits import __main__ as tune_digits
from experiments.usps_backprop import __main__ as usps_backprop
from hgrad_jax.data.originals import DATA_DIR_VARIABLE

SCRIPTS = [
    *(approximations, bench, bench_forward, bench_sweep, drmad_study, forward_gradient_cnn),
    *(forward_reverse, hyper_cleaning, optimizers, penguins, tune_digits, usps_backprop),
]


def name_of(script):
    return script.__name__.split(".")[1]


def having(name):
    """The scripts that have an option."""
    return [x for x in SCRIPTS if name in {field.name for field in dataclasses.fields(x.Config)}]


each_script = pytest.mark.parametrize("script", SCRIPTS, ids=name_of)


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


@each_script
class TestEveryExperiment:
    def test_help_names_every_option_in_80_columns(self, script, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as stop:
            script.main(["--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for field in dataclasses.fields(script.Config):
            assert "--" + field.name.replace("_", "-") in text
        assert all(len(line) <= 80 for line in text.splitlines())
        assert text.startswith(f"usage: python -m experiments.{name_of(script)} [options]\n")
        assert " ".join(script.__doc__.split()) in " ".join(text.split())

    def test_its_examples_are_commands_that_it_takes(self, script):
        start = f"    python -m experiments.{name_of(script)} "
        lines = [line for line in script.__doc__.splitlines() if line.startswith(start)]
        assert lines
        for line in lines:
            config = parse(script.Config, shlex.split(line.removeprefix(start)), "")
            assert config != script.Config()

    def test_an_unknown_option(self, script, capsys):
        refused(script, ["--wings", "2"], "unrecognized arguments: --wings 2", capsys)

    def test_another_choice(self, script, capsys):
        for field in dataclasses.fields(script.Config):
            if field.metadata["choices"]:
                words = ["--" + field.name.replace("_", "-"), "neither"]
                refused(script, words, "invalid choice: 'neither'", capsys)


def refused(script, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(words)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("script", having("seed"), ids=name_of)
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_is_none(script, seed, capsys):
    words = ["--seed", str(seed)]
    refused(script, words, f"seed is {seed}; it must be in [0, 2**32)", capsys)


WRONG_OPTIONS = {
    approximations: {
        "--num-steps 5": "num_steps is 5; the study starts at 20",
    },
    bench: {
        "--cases mpl-100": "there is no case 'mpl-100': write one of softmax, mlp",
        "--cases mlp-0": "there is no case 'mlp-0'",
        "--repeats 0": "repeats is 0; it must be positive",
    },
    bench_forward: {
        "--problems adam": "problems has 'adam'",
        "--gradients magic": "gradients has 'magic'",
    },
    bench_sweep: {
        "--cases 10": "no case '10'",
        "--repeats 0": "repeats is 0; it must be positive",
    },
    drmad_study: {
        "--num-steps 200 5": "num_steps has 5; it must be at least 20",
        "--seeds 1 1": "must not name one twice",
        "--momentum 1": "momentum is 1.0; it must be in",
        "--num-meta-steps 0": "num_meta_steps is 0; it must be at least 1",
        "--batch-size 1001": "batch_size is 1001, but there are 1000 training images",
        "--learning-rate -1": "learning_rate is -1.0; it must be positive",
        "--parts tunes": "parts has 'tunes'; choose from tuning, back, paths",
        "--follow none": "follow has 'none'; choose from DrMAD, exact",
        "--path-batch-size 2000": "path_batch_size is 2000",
    },
    forward_gradient_cnn: {
        "--rate-factor 0": "rate_factor is 0.0; it must be positive",
        "--methods magic": "there is no method 'magic'",
    },
    forward_reverse: {
        "--num-steps 0": "num_steps is 0; it must be positive",
        "--learning-rate inf": "learning_rate is inf; it must be positive",
        "--momentum 0": "momentum is 0.0; it must be in [1/128, 1)",
        "--momentum nan": "momentum is nan; it must be in [1/128, 1)",
        "--hidden 10 0": "hidden is (10, 0); every layer needs a unit",
        "--real-time-steps -1": "real_time_steps is -1; it must be at least 0",
        "--modes forward sideways": "there is no mode 'sideways': they are forward, reverse",
    },
    hyper_cleaning: {
        "--corrupted 0": "corrupted is 0.0; it must be positive",
        "--corrupted 1": "corrupted is 1.0; it must be below 1",
        "--momentum 1": "momentum is 1.0; it must be below 1",
        "--num-steps 0": "num_steps is 0; it must be positive",
        "--num-train 0": "num_train is 0; it must be positive",
        "--threshold 1.5": "threshold is 1.5; it must be at most 1",
        "--batch-fraction 2": "batch_fraction is 2.0; it must be at most 1",
        "--hidden -1": "hidden is -1; it must be at least 0",
        "--seeds 0 -1": "seeds are (0, -1); each must be in [0, 2**32)",
        "--l1-radius 0": "l1_radius is 0.0; it must be positive",
    },
    optimizers: {
        "--momentum 1": "momentum is 1.0; it must be in [0, 1)",
        "--rules-hidden 5 0": "rules_hidden is (5, 0); it must be positive",
        "--batch-norm-decay 2": "batch_norm_decay is 2.0; it must be in (0, 1]",
        "--rules-num-train 50": "rules_num_train is 50, less than batch_size, 100",
    },
    penguins: {
        "--num-seeds 0": "num_seeds is 0; it must be positive",
        "--models cnn": "there is no 'cnn': write some of softmax, mlp",
    },
    tune_digits: {
        "--momentum 1": "momentum is 1.0; it must be between 0 and 1",
        "--num-steps 0": "num_steps is 0; it must be positive",
        "--batch-size 500": "batch_size is 500, more than num_train",
    },
    usps_backprop: {
        "--momenta 0 1": "momenta are (0.0, 1.0); they must be in [0, 1)",
        "--learning-rates -1": "learning_rates are (-1.0,); they must be in [0, inf)",
        "--weight-decays 1 1": "weight_decays are (1.0, 1.0); give each once",
        "--num-steps 0": "num_steps is 0; it must be positive",
    },
}


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [(script, *row) for script, rows in WRONG_OPTIONS.items() for row in rows.items()],
)
def test_wrong_options(script, words, message, capsys):
    refused(script, words.split(), message, capsys)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (approximations, "--data mnist"),
        (drmad_study, "--data mnist --parts tuning"),
        (drmad_study, "--path-data cifar10_subset --parts paths"),
        (drmad_study, "--path-data cifar10 --parts paths"),
        (forward_gradient_cnn, "--data mnist"),
        (forward_reverse, "--data mnist"),
        (hyper_cleaning, "--data mnist"),
        (optimizers, "--data mnist"),
        (tune_digits, "--data mnist"),
        (usps_backprop, "--data usps"),
    ],
)
class TestMissingData:
    """Another folder than one with the data: one that is not there, or an empty one."""

    def test_no_folder(self, script, words, tmp_path):
        words = [*words.split(), "--data-dir", "nowhere", "--out", str(tmp_path)]
        with pytest.raises(SystemExit, match="error: data_dir is nowhere, which is not a folder"):
            script.main(words)

    def test_an_empty_folder(self, script, words, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
        name = words.split()[1]
        words = [*words.split(), "--data-dir", str(tmp_path), "--out", str(tmp_path)]
        with pytest.raises(SystemExit, match=f"error: .*{name}"):
            script.main(words)


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (forward_gradient_cnn, "--batch-size 5000", "batch_size is 5000, of 1438 images"),
        (
            forward_reverse,
            "--batch-size 899",
            "batch_size is 899, but digits has 898 images to train on",
        ),
        (hyper_cleaning, "--num-valid 5000", "there are 1438 examples"),
        (
            optimizers,
            "--batch-size 2000 --rules-num-train 4000",
            "batch_size is 2000, but digits has 1438 training images",
        ),
        (tune_digits, "--num-valid 5000", "there are 1438 examples"),
        (usps_backprop, "--batch-size 1001", "batch_size is 1001, but data has 1000 examples"),
    ],
)
def test_more_examples_than_there_are(script, words, message, tmp_path):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        script.main([*words.split(), "--out", str(tmp_path)])

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import keystr
from jax.tree_util import tree_leaves_with_path as leaves_with_path
from matplotlib.image import imread

import hgrad_jax as hg
from experiments.common import environment, parse
from experiments.tune_digits import __main__ as tune_digits

TINY = [
    *("--num-steps", "10", "--num-meta-steps", "2", "--num-runs", "2", "--hidden", "5"),
    *("--num-train", "40", "--num-valid", "50", "--batch-size", "20", "--learning-rate", "0.2"),
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The result, and its folder."""
    out = tmp_path_factory.mktemp("tune")
    return tune_digits.main([*TINY, "--out", str(out)]), out


def meta_steps(out):
    (path,) = out.glob("*/meta_steps.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_storing(config, problem=tune_digits.problem):
    """The problem, differentiated without running backwards."""
    objective, run = problem(config)
    return objective, dataclasses.replace(run, adjoint=hg.Direct())


def test_the_result_is_one_line_with_its_circumstances(done):
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


def test_every_meta_step_is_recorded(done):
    lines = meta_steps(done[1])
    assert [line["meta_step"] for line in lines] == [0, 1]
    first, second = (line["hparams"] for line in lines)
    np.testing.assert_allclose(first["log_learning_rate"], np.log(0.2), rtol=1e-6)
    # Adam's first step is the sign of the gradient times its rate.
    moved = np.subtract(second["log_learning_rate"], first["log_learning_rate"])
    np.testing.assert_allclose(np.abs(moved), 0.1, rtol=1e-2)


def test_the_same_command_finds_its_tuning_and_another_does_not(done):
    result, out = done
    tune_digits.main([*TINY, "--out", str(out)])
    again = json.loads((out / "result.jsonl").read_text().splitlines()[-1])
    np.testing.assert_array_equal(again["after"]["test_loss"], result["after"]["test_loss"])
    config = parse(tune_digits.Config, [*TINY, "--seed", "1", "--out", str(out)], "")
    assert not tune_digits.records_folder(config).exists()


@pytest.mark.parametrize("name", ["validation_loss", "learning_rate", "regularization"])
def test_a_figure_is_an_image_with_something_on_it(done, name):
    image = imread(done[1] / f"{name}.png")
    assert min(image.shape[:2]) >= 400
    assert image[..., :3].std() > 0.05


def test_the_hypergradients_equal_those_of_stored_training(done):
    config = parse(tune_digits.Config, TINY, "")
    data = tune_digits.load_data(config)
    model, optimizer = tune_digits.make_model(config), optax.adam(config.meta_learning_rate)
    first = tune_digits.initial_hparams(config, data.train.inputs)
    names = [keystr(path, simple=True, separator=".") for path, _ in leaves_with_path(first)]

    @jax.jit
    def meta_step(hparams, key):
        return hg.meta_step(
            *by_storing(config),
            functools.partial(tune_digits.initial_params, model, data.train.inputs),
            hparams,
            data.train,
            data.valid,
            optimizer=optimizer,
            opt_state=optimizer.init(hparams),
            key=key,
            num_runs=config.num_runs,
        )

    for k, line in enumerate(meta_steps(done[1])):
        hparams = [jnp.float32(line["hparams"][name]) for name in names]
        hparams = jax.tree.unflatten(jax.tree.structure(first), hparams)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 0), k)
        stored = meta_step(hparams, key)
        np.testing.assert_allclose(line["value"], stored.found.value, rtol=1e-5)
        for name, want in zip(names, jax.tree.leaves(stored.gradient), strict=True):
            error = np.linalg.norm(np.subtract(line["hypergradient"][name], want))
            assert error < 1e-4 * np.linalg.norm(want)


def test_the_parts_of_the_data_are_disjoint():
    data = tune_digits.load_data(tune_digits.Config())
    sizes = [len(part.labels) for part in data]
    assert sizes == [300, 1000, 359]
    rows = [np.asarray(part.inputs) for part in data]
    everything = {row.tobytes() for part in rows for row in part}
    assert len(everything) == sum(len({row.tobytes() for row in part}) for part in rows)


def test_a_diverging_training_stops_with_the_reason_and_leaves_a_record(tmp_path, monkeypatch):
    # Storing the training compiles sooner, and what the flags do is the same.
    monkeypatch.setattr(tune_digits, "problem", by_storing)
    with pytest.raises(SystemExit, match=r"error: meta-step 0: .*lower the learning rate"):
        tune_digits.main([*TINY, "--learning-rate", "1e9", "--out", str(tmp_path)])
    (line,) = meta_steps(tmp_path)
    assert "lower the learning rate" in line["problem"]
    assert not (tmp_path / "result.jsonl").exists()

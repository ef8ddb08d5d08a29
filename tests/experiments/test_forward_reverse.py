"""The study of forward against reverse hypergradients, shortened, and what it writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.common import parse
from experiments.forward_reverse import __main__ as forward_reverse
from experiments.forward_reverse import problem as forward_reverse_problem
from hgrad_jax.models import cross_entropy

NUM_STEPS = 6
MODES = ["forward", "reverse", "checkpointed", "reversible"]
TINY = [
    *("--hidden", "8", "6", "--num-steps", str(NUM_STEPS), "--batch-size", "20"),
    *("--learning-rate", "0.3", "--meta-learning-rate", "0.002", "--num-meta-steps", "2"),
    *("--real-time-steps", str(2 * NUM_STEPS), "--every", str(NUM_STEPS)),
]
NAMES = ["l1_0", "l1_1", "l1_2", "l2_0", "l2_1", "l2_2", "learning_rate", "momentum"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The records by meta-step and mode, that of the real-time run, and the folder."""
    out = tmp_path_factory.mktemp("forward_reverse")
    assert len(forward_reverse.main([*TINY, "--out", str(out)])) == 2 * len(MODES) + 1
    *lines, online = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    return {(line["meta_step"], line["mode"]): line for line in lines}, online, out


def problem(words=()):
    """The tiny problem: configuration, data, network."""
    config = parse(forward_reverse.Config, [*TINY, *words], "")
    return config, forward_reverse.load_data(config), forward_reverse.make_model(config)


def by_hand(config, data, hparams):
    """The validation error after a training written out, with cross-entropy and nothing else."""
    params = forward_reverse_problem.initial_params(config, data, 0)
    layers = [params[f"Dense_{i}"] for i in range(3)]
    velocities = jax.tree.map(jnp.zeros_like, layers)

    def error(layers, images, labels):
        x = images.reshape(len(images), -1)
        for layer in layers[:-1]:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return cross_entropy(x @ layers[-1]["kernel"] + layers[-1]["bias"], labels)

    def penalized(layers, images, labels):
        value = error(layers, images, labels)
        for l1, l2, layer in zip(hparams["l1"], hparams["l2"], layers, strict=True):
            weights = layer["kernel"]
            value += l1 * jnp.sum(jnp.abs(weights)) + l2 / 2 * jnp.sum(weights**2)
        return value

    def step(state, batch):
        layers, velocities = state
        gradient = jax.grad(penalized)(layers, *batch)
        velocities = jax.tree.map(lambda v, g: hparams["momentum"] * v + g, velocities, gradient)
        layers = jax.tree.map(lambda w, v: w - hparams["learning_rate"] * v, layers, velocities)
        return (layers, velocities), None

    shown = [x[: 20 * NUM_STEPS].reshape(NUM_STEPS, 20, *x.shape[1:]) for x in data.train]
    (layers, _), _ = jax.lax.scan(step, (layers, velocities), shown)
    return error(layers, data.valid.inputs, data.valid.labels)


class TestModes:
    def test_all_agree_at_every_meta_step(self, done):
        records, _, _ = done
        assert list(records) == [(k, mode) for k in range(2) for mode in MODES]
        for (k, _), record in records.items():
            assert list(record["hypergradient"]) == NAMES
            want = records[k, "reverse"]["hypergradient"]
            for name, value in record["hypergradient"].items():
                assert value != 0
                assert value == pytest.approx(want[name], rel=1e-5), name
                seen = record["relative_difference"][name]
                assert seen == pytest.approx(abs(value - want[name]) / abs(want[name]))

    def test_the_hypergradients_are_those_of_the_training_written_out(self, done):
        config, data, _ = problem()
        hparams = forward_reverse_problem.initial_hparams(config, data)
        value, want = jax.jit(jax.value_and_grad(lambda hparams: by_hand(config, data, hparams)))(
            hparams
        )
        for mode in MODES:
            record = done[0][0, mode]
            assert record["validation_error"] == pytest.approx(float(value), rel=1e-5)
            for name, number in forward_reverse_problem.named(want).items():
                assert record["hypergradient"][name] == pytest.approx(number, rel=1e-4), name

    def test_all_follow_the_hyperparameters_of_reverse(self, done):
        records, _, _ = done
        start = dict.fromkeys(NAMES[:6], 0.0) | {"learning_rate": 0.3, "momentum": 0.5}
        leader = records[0, "reverse"]
        for mode in MODES:
            assert records[0, mode]["hparams"] == pytest.approx(start)
            assert records[1, mode]["hparams"] == leader["hparams_after"]
        # Adam's first step is the sign of the gradient times its rate; it stops at zero.
        for name, value in leader["hparams_after"].items():
            moved = start[name] - 0.002 * np.sign(leader["hypergradient"][name])
            assert value == pytest.approx(max(moved, 0), rel=1e-3, abs=1e-9)

    def test_a_record_tells_of_accuracy_and_cost(self, done):
        records, _, _ = done
        for (k, mode), record in records.items():
            assert record["num_params"] == 64 * 8 + 8 + 8 * 6 + 6 + 6 * 10 + 10
            assert record["environment"]["dtype"] == "float32"
            assert record["config"]["num_steps"] == NUM_STEPS
            assert record["is_restored"] is (True if mode == "reversible" else None)
            for key in ("seconds", "cpu_seconds", "compile_seconds"):
                assert record[key] > 0
            assert record["accuracy"] == pytest.approx(records[k, "reverse"]["accuracy"], abs=0.01)
            assert set(record["accuracy"]) == {"train", "valid", "test"}
        fewest = min(records[0, mode]["temp_bytes"] for mode in MODES)
        assert fewest < records[0, "reverse"]["temp_bytes"]

    def test_meta_steps_start_from_fresh_weights(self):
        config, data, _ = problem()
        first, second = (
            forward_reverse_problem.initial_params(config, data, k)["Dense_0"]["kernel"]
            for k in range(2)
        )
        assert np.all(first != second)


class TestRealTime:
    def test_the_first_hypergradient_is_that_of_forward_mode(self, done):
        """A batch of all validation images, after as many steps as a hypergradient takes."""
        records, online, _ = done
        path = online["learned"]["path"]
        want = records[0, "forward"]["hypergradient"]
        got = {name: np.asarray(x)[NUM_STEPS - 1] for name, x in path["hypergradient"].items()}
        for name, value in forward_reverse_problem.named(got).items():
            assert value == pytest.approx(want[name], rel=1e-4), name

    def test_what_is_learned_starts_where_the_tuning_does_and_moves(self, done):
        records, online, _ = done
        path = online["learned"]["path"]["hparams"]
        for t, key in ((0, "hparams"), (NUM_STEPS - 1, "hparams_after")):
            here = {name: np.asarray(x)[t] for name, x in path.items()}
            want = records[0, "forward"][key]
            assert forward_reverse_problem.named(here) == pytest.approx(want, rel=1e-5, abs=1e-8)

    def test_the_training_beside_it_keeps_its_hyperparameters(self, done):
        records, online, _ = done
        kept = online["kept"]["path"]["validation_error"]
        want = records[0, "reverse"]["validation_error"]
        assert kept[NUM_STEPS - 1] == pytest.approx(want, rel=1e-5)
        # The same until the first update, and not after it.
        learned = online["learned"]["path"]["validation_error"]
        np.testing.assert_allclose(learned[:NUM_STEPS], kept[:NUM_STEPS], rtol=1e-5)
        assert abs(learned[-1] - kept[-1]) > 1e-4
        for run in ("learned", "kept"):
            last = online[run]["path"]["validation_error"][-1]
            assert online[run]["validation_error"] == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("name", ["hypergradients", "differences", "costs", "real_time"])
def test_a_figure_is_an_image(done, name):
    assert imread(done[2] / f"{name}.png")[..., :3].std() > 0.03


def test_logistic_regression_in_64_bits(tmp_path, capsys):
    words = "--model softmax --x64 --num-steps 5 --num-meta-steps 1 --batch-size 20"
    words += f" --modes forward --real-time-steps 0 --out {tmp_path}"
    forward, reverse = forward_reverse.main(words.split())
    assert [forward["mode"], reverse["mode"]] == ["forward", "reverse"]
    assert reverse["environment"]["dtype"] == "float64"
    assert list(reverse["hypergradient"]) == ["l1_0", "l2_0", "learning_rate", "momentum"]
    for name, value in forward["hypergradient"].items():
        assert value == pytest.approx(reverse["hypergradient"][name], rel=1e-12)
    shown = capsys.readouterr().out
    assert "digits, softmax of 650 weights, float64" in shown
    assert f"{reverse['hypergradient']['momentum']:.7g}" in shown
    assert not (tmp_path / "real_time.png").exists()


def test_a_conv_net_has_coefficients_for_four_layers():
    config, data, _ = problem(["--model", "cnn"])
    hparams = forward_reverse_problem.initial_hparams(config, data)
    assert hparams["l1"].shape == hparams["l2"].shape == (4,)
    params = jax.eval_shape(lambda: forward_reverse_problem.initial_params(config, data, 0))
    shapes = [x.shape for x in forward_reverse_problem.kernels(params)]
    assert shapes == [(3, 3, 1, 4), (3, 3, 4, 8), (32, 64), (64, 10)]


def test_the_validation_error_in_pieces(monkeypatch):
    config, data, model = problem()
    params = forward_reverse_problem.initial_params(config, data, 0)

    def whole(params):
        logits = model.apply({"params": params}, data.valid.inputs, train=False)
        return cross_entropy(jnp.asarray(logits), data.valid.labels)

    want, want_gradient = jax.jit(jax.value_and_grad(whole))(params)
    monkeypatch.setattr(forward_reverse_problem, "PIECE", 100)  # 5 of them, and a rest of 39
    error = forward_reverse_problem.validation_error(model)
    got, gradient = jax.jit(jax.value_and_grad(lambda p: error(p, None, data.valid)))(params)
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(want_gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_a_training_that_diverges_ends_with_the_reason(tmp_path):
    words = "--model softmax --num-steps 4 --learning-rate 1e38 --modes reverse"
    with pytest.raises(SystemExit, match=r"error: the training became .* lower the learning rate"):
        forward_reverse.main([*words.split(), "--out", str(tmp_path)])

"""The experiments on forward gradients, shortened, and what they write."""

import json

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.bench_forward import __main__ as bench_forward
from experiments.forward_gradient_cnn import __main__ as forward_gradient_cnn
from experiments.penguins import __main__ as penguins
from experiments.penguins import problem as penguins_problem


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("penguins")
    words = ["--models", "mlp", "--num-seeds", "3", "--num-steps", "60"]
    words += ["--methods", "backpropagation", "signs", "--timed-steps", "5"]
    return penguins.main([*words, "--out", str(out)]), out


class TestPenguins:
    def test_a_record_tells_where_each_seed_stopped(self, done):
        records, out = done
        for record, line in zip(records, lines(out / "results.jsonl"), strict=True):
            assert line["iterations"] == record["iterations"]
            assert line["config"]["num_seeds"] == 3
            assert line["seconds_per_step"] > 0
            assert record["curves"]["loss"].shape == (3, 61)
            for seed, t in enumerate(record["iterations"]):
                loss = record["curves"]["train_loss"][seed]
                assert (seed in record["not_reached"]) == (t is None)
                before = loss if t is None else loss[:t]
                assert not np.any(before <= 0.2)
                assert t is None or loss[t] <= 0.2

    def test_every_method_starts_from_the_same_values(self, done):
        first, second = (record["curves"]["loss"][:, 0] for record in done[0])
        np.testing.assert_array_equal(first, second)

    def test_backpropagation_stops_and_one_direction_at_that_rate_diverges(self, done):
        by_backpropagation, by_signs = done[0]
        assert None not in by_backpropagation["iterations"]
        assert None in by_signs["iterations"]

    def test_the_figure_is_an_image(self, done):
        assert imread(done[1] / "mlp.png")[..., :3].std() > 0.05

    def test_the_measurements_are_standardized_by_the_training_birds(self):
        data = penguins_problem.load_data()
        np.testing.assert_allclose(np.mean(data.train.inputs, 0), 0, atol=1e-5)
        np.testing.assert_allclose(np.std(data.train.inputs, 0), 1, rtol=1e-5)


class TestConvolutionalNetwork:
    def test_a_record_and_a_figure(self, tmp_path):
        words = ["--num-steps", "30", "--evaluations", "3", "--batch-size", "20"]
        words += ["--methods", "pre-activations-adam", "--out", str(tmp_path)]
        (record,) = forward_gradient_cnn.main(words)
        (line,) = lines(tmp_path / "results.jsonl")
        assert line["steps"] == [10, 20, 30]
        # The last point of the curve is the end's.
        end = line["test"]["accuracy"]
        assert line["test_accuracy_at"][-1] == pytest.approx(end, abs=1e-6)
        assert line["num_params"] == 20 + 76 + 64 * 65 + 650
        assert record["seconds_per_step"] > 0
        assert imread(tmp_path / "digits.png")[..., :3].std() > 0.02


class TestBench:
    def test_records_compare_with_backpropagation(self, tmp_path):
        out = tmp_path / "forward.jsonl"
        words = ["--problems", "softmax", "--num-steps", "3", "--repeats", "2"]
        words += ["--gradients", "rademacher", "--out", str(out)]
        first, second = bench_forward.main(words)
        assert [line["gradient"] for line in lines(out)] == ["backpropagation", "rademacher"]
        assert first["ratio"] == 1
        assert second["ratio"] == pytest.approx(second["least"] / first["least"])

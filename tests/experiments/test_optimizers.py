import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from experiments.common import environment, parse
from experiments.optimizers import __main__ as optimizers
from experiments.optimizers import report as optimizers_report
from hgrad_jax.data import shuffled
from hgrad_jax.models import MLP, classification_loss
from hgrad_jax.models.initializers import scaled_normal

TINY = [
    *("--rules-num-train", "300", "--rules-num-epochs", "2", "--rules-hidden", "12", "12"),
    *("--batch-norm-num-epochs", "2", "--batch-norm-hidden", "12", "--batch-size", "30"),
    *("--num-measured", "100", "--num-statistics", "200"),
]
RULES = ["SGD", "momentum", "Nesterov", "RMSProp", "Adam"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The two records and their folder."""
    out = tmp_path_factory.mktemp("optimizers")
    return optimizers.main([*TINY, "--out", str(out)]), out


class TestOptimizers:
    def test_a_record_is_one_line_with_its_circumstances(self, done):
        _, out = done
        lines = [json.loads(line) for line in (out / "result.jsonl").read_text().splitlines()]
        assert [line["study"] for line in lines] == ["rules", "batch_norm"]
        assert list(lines[0]["runs"]) == RULES
        for line in lines:
            assert line["config"]["batch_size"] == 30
            assert line["environment"] == environment()
            for run in line["runs"].values():
                assert run["reason"] == "all epochs are done"
                assert run["epoch"] == [0, 1, 2]
        assert len(lines[0]["runs"]["Adam"]["step_loss"]) == 2 * (300 // 30)
        assert len(lines[1]["runs"]["batch norm"]["step_loss"]) == 2 * (1438 // 30)

    def test_every_rule_starts_from_the_same_network_and_learns(self, done):
        runs = done[0][0]["runs"]
        assert len({run["step_loss"][0] for run in runs.values()}) == 1
        for run in [*runs.values(), *done[0][1]["runs"].values()]:
            loss = run["metrics"]["valid_loss"]
            assert loss[-1] < loss[0]
        assert done[0][1]["runs"]["batch norm"]["metrics"]["valid_accuracy"][-1] > 0.8

    def test_momentum_is_the_textbooks(self, done):
        """v = 0.9 v - 0.01 grad, w = w + v, written out."""
        config = parse(optimizers.Config, TINY, "")
        data = optimizers.prepared(optimizers.load_data(config), 300, 100)
        model = MLP((12, 12, 10), kernel_init=scaled_normal(0.05))
        loss, batches = classification_loss(model), shuffled(30, seed=0)
        w = optimizers.initial_params(model, data, config)
        v, losses = jax.tree.map(jnp.zeros_like, w), []
        value_and_grad = jax.jit(jax.value_and_grad(lambda w, batch: loss(w, {}, batch, None)))
        for t in range(5):
            value, grad = value_and_grad(w, batches(data.train, jnp.int32(t), None))
            v = jax.tree.map(lambda v, g: 0.9 * v - 0.01 * g, v, grad)
            w = jax.tree.map(jnp.add, w, v)
            losses.append(float(value))
        np.testing.assert_allclose(done[0][0]["runs"]["momentum"]["step_loss"][:5], losses, 1e-4)

    def test_inputs_are_centred_by_the_training_images(self):
        config = parse(optimizers.Config, TINY, "")
        parts = optimizers.load_data(config)
        data = optimizers.prepared(parts, 300, 100)
        assert [len(part.labels) for part in data] == [300, 100, 100]
        np.testing.assert_allclose(data.train.inputs.mean(axis=0), 0, atol=1e-3)
        mean = parts.train.inputs[:300].mean(axis=0)
        np.testing.assert_allclose(data.valid.inputs[3], 255 * (parts.test.inputs[3] - mean), 1e-5)

    def test_figures(self, done):
        for name in ("rules", "batch_norm"):
            image = imread(done[1] / f"{name}.png")
            assert min(image.shape[:2]) >= 400
            assert image[..., :3].std() > 0.05

    def test_a_diverged_rule_is_named(self, tmp_path, capsys):
        words = [*TINY, "--study", "rules", "--sgd-learning-rate", "1e6", "--out", str(tmp_path)]
        (record,) = optimizers.main(words)
        assert "the state after epoch 0 is kept" in record["runs"]["SGD"]["reason"]
        assert record["runs"]["Adam"]["reason"] == "all epochs are done"
        assert "SGD: the loss became" in capsys.readouterr().out
        assert (tmp_path / "rules.png").exists()
        assert not (tmp_path / "batch_norm.png").exists()


def test_a_window_of_losses_stands_at_its_mean_epoch():
    x, y = optimizers_report.averaged(np.arange(7.0), np.arange(7.0) ** 2, 3)
    np.testing.assert_array_equal(x, [1, 4])
    np.testing.assert_allclose(y, [5 / 3, (9 + 16 + 25) / 3])

"""What a second look found: closed-over values, adjoints of one name, budgets, short runs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.data import validate_examples
from hgrad_jax.data.dataset import num_examples
from hgrad_jax.models import CNN, cross_entropy, error_rate


def squares(scale):
    def loss(params, hparams, batch, key):
        return jnp.sum((params - scale * hparams["a"]) ** 2)

    return loss


def test_a_window_stops_what_the_loss_closes_over():
    def end(rate, is_closed_over):
        rule = hg.momentum(
            lambda params, hparams, batch, key: jnp.sum(jnp.cosh(params)),
            learning_rate=(lambda hparams: rate) if is_closed_over else (lambda hparams: hparams),
            momentum=0.9,
        )
        out = hg.unroll(
            hg.Run(rule, num_steps=20, adjoint=hg.Truncated(1)), jnp.ones(3), rate, None
        )
        return jnp.sum(out.params)

    gradients = [jax.grad(end)(0.1, is_closed_over) for is_closed_over in (True, False)]
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-6)


def compared(adjoints, **settings):
    rule = hg.heavy_ball(squares(1.0), learning_rate=0.1, momentum=0.5)
    run, start = hg.Run(rule, num_steps=100), jnp.zeros(2)
    objective = lambda params, hparams, _: jnp.sum(params**2)  # noqa: E731
    return hg.compare(
        objective, run, start, {"a": jnp.ones(2)}, None, adjoints=adjoints, **settings
    )


def test_adjoints_of_one_name_are_kept_apart():
    one, three = (
        hg.Implicit(hg.Stationary(squares(s)), stationarity_tolerance=1e9) for s in (1.0, 3.0)
    )
    rows: Any = compared([hg.Direct(), one, three]).rows
    assert len({row.name for row in rows}) == 3
    np.testing.assert_allclose([row.norm for row in rows], [8**0.5, 8**0.5, 72**0.5], rtol=1e-4)
    rows = compared([one], reference=three).rows
    reference, other = rows
    np.testing.assert_allclose([reference.norm, other.norm], [72**0.5, 8**0.5], rtol=1e-4)
    np.testing.assert_allclose(other.relative_error, 2 / 3, rtol=1e-4)


@pytest.mark.parametrize("size", [8, 24])
@pytest.mark.parametrize("is_bare", [False, True])
def test_plan_takes_constants_as_long_as_its_short_runs(size, is_bare):
    def loss(params, hparams, batch, key):
        strengths = hparams if is_bare else hparams["l2"]
        return jnp.sum((params - 1.0) ** 2) + jnp.sum(strengths * params**2)

    strengths = jnp.full(size, 0.1)
    found = hg.plan(
        lambda params, hparams, _: jnp.sum(params),
        hg.Run(hg.sgd(loss, learning_rate=0.1), num_steps=100),
        jnp.ones(size),
        strengths if is_bare else {"l2": strengths},
        None,
        memory=1e9,
        adjoints=(hg.Direct(),),
    )
    assert found.recommended == hg.Direct()


def test_unit_vectors_count_in_forward_mode():
    """Many numbers, a state of one: the tangents are small, what they belong to is not."""
    size = 4000
    weights = jnp.linspace(0.0, 1.0, size)
    rule = hg.heavy_ball(
        lambda params, hparams, batch, key: (params - jnp.vdot(hparams, weights) / size) ** 2,
        learning_rate=0.1,
        momentum=0.5,
    )

    def gradient(memory):
        def end(hparams):
            adjoint = hg.ForwardMode(memory=memory)
            out = hg.unroll(
                hg.Run(rule, num_steps=10, adjoint=adjoint), jnp.float32(0), hparams, None
            )
            return out.params

        return jax.jit(jax.grad(end))

    for memory in (3e5, 1e6):
        analysis = gradient(memory).lower(jnp.ones(size)).compile().memory_analysis()
        assert analysis is not None
        assert analysis.temp_size_in_bytes <= memory
    with pytest.raises(ValueError, match=r"memory is 1e\+04 bytes, but one tangent"):
        gradient(1e4).lower(jnp.ones(size))


TEXT: Any = "2GB"
NOTHING: Any = None


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: hg.ForwardMode(memory=TEXT), "memory is '2GB'"),
        (lambda: hg.Implicit(stationarity_tolerance=NOTHING), "stationarity_tolerance is None"),
        (lambda: hg.ConjugateGradient(tolerance=3.0), "tolerance is 3.0; it must be between 0"),
        (lambda: hg.ConjugateGradient(damping=NOTHING), "damping is None"),
        (lambda: hg.Reversible(smallest_decay=TEXT), "smallest_decay is '2GB'"),
        (lambda: hg.EarlyDisplacement(factor=np.inf), "factor is inf"),
    ],
    ids=["memory", "stationarity", "tolerance", "damping", "decay", "factor"],
)
def test_settings_that_are_no_numbers(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_numbers_of_numpy_are_numbers():
    two: Any = np.int64(2)
    ten: Any = np.float32(10)
    assert hg.Checkpointed(branching=two).branching == 2
    assert hg.Clip(state=ten).state == 10


class TestSettingsOfTrainings:
    DATA = (jnp.ones((8, 2)), jnp.zeros(8, jnp.int32))

    @staticmethod
    def loss(params, hparams, batch, key):
        return jnp.mean((batch[0] @ params) ** 2)

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"checkpoints": "results/x"}, r"checkpoints is 'results/x'; pass hg.Checkpoints"),
            ({"loss": lambda params: 0.0}, r"loss takes \(params\), but is called as loss"),
            ({"metrics": lambda params: {}}, r"metrics takes \(params\), but is called as"),
            ({"metrics_args": jnp.ones(3)}, "it must be a tuple of what metrics takes besides"),
            ({"epoch_hparams": 0.9}, "epoch_hparams is 0.9, but is called as"),
            ({"key": 0}, "key is 0, not one PRNG key"),
        ],
        ids=["checkpoints", "loss", "metrics", "args", "epoch", "key"],
    )
    def test_fit(self, settings, match):
        rule = hg.sgd(self.loss, learning_rate=0.1)
        with pytest.raises(TypeError, match=match):
            hg.fit(rule, jnp.ones(2), {}, self.DATA, num_epochs=1, **settings)

    def test_targets(self):
        with pytest.raises(TypeError, match=r"value is '2GB'; it must be a number"):
            hg.Target("train_loss", TEXT)

    def test_sweeps(self):
        settings = hg.grid({"rate": [0.1, 0.2]})
        run: Any = lambda hparams, key: hparams  # noqa: E731
        with pytest.raises(TypeError, match=r"run takes \(hparams, key\), but is called as run"):
            hg.sweep(run, settings, None)


class TestNumbersThatWouldBeWrong:
    """Each was silent once."""

    @staticmethod
    def loss(params, hparams, batch, key):
        return jnp.sum(params**2)

    RATE: Any = {"learning_rate": 0.25, "momentum": 0.5}  # noqa: RUF012

    @pytest.mark.parametrize("make", [hg.sgd, hg.nesterov, hg.rmsprop, hg.adam, hg.heavy_ball])
    def test_updates_of_what_does_not_fit(self, make):
        update = make(self.loss).update
        with pytest.raises(
            ValueError, match=r"gradient has the shapes \(3, 2\), but params \(2,\)"
        ):
            update(jnp.ones(2), jnp.ones((3, 2)), None, self.RATE)
        with pytest.raises(TypeError, match=r"gradient is .* write it in floats"):
            update(jnp.ones(2), jnp.array([1, 3]), None, self.RATE)
        with pytest.raises(TypeError, match=r"params is .* write it in floats"):
            update(jnp.array([1, 2]), jnp.ones(2), None, self.RATE)
        with pytest.raises(TypeError, match=r"count is '1'; it must be an int"):
            update(jnp.ones(2), jnp.ones(2), None, self.RATE, TEXT.replace("2GB", "1"))
        with pytest.raises(ValueError, match=r"slots is \['v'\]; it must be a dict of"):
            update(jnp.ones(2), jnp.ones(2), {"v": jnp.ones(2)}, self.RATE)

    @pytest.mark.parametrize("make", [hg.sgd, hg.heavy_ball])
    def test_providers_of_what_does_not_fit(self, make):
        rule = make(self.loss, gradient=lambda loss: lambda p, h, b, k: jnp.ones(1))
        with pytest.raises(ValueError, match=r"the gradient has the shapes \(1,\), but params"):
            hg.unroll(hg.Run(rule, num_steps=2), jnp.ones(3), self.RATE, None)

    def test_labels_that_are_no_class(self):
        """The gradient too is NaN, compiled or not, so that a training says so."""
        labels = jnp.array([1, 10])
        for differentiate in (jax.grad(cross_entropy), jax.jit(jax.grad(cross_entropy))):
            bars = differentiate(jnp.ones((2, 3)), labels)
            assert np.all(np.isnan(bars[1]))
            assert np.all(np.isfinite(bars[0]))

    def test_predictions_that_are_no_numbers(self):
        logits = jnp.array([[jnp.nan, 0.0], [1.0, 0.0]])
        assert error_rate(logits, jnp.array([0, 0])) == 0.5

    def test_decays_in_half_precision(self):
        """0.999 is 1 in bfloat16, whatever the number was written as."""

        def second_moment(b2):
            rule = hg.adam(lambda p, h, b, k: jnp.sum(p), learning_rate=1e-3, b2=b2)
            out = hg.unroll(hg.Run(rule, num_steps=50), jnp.zeros(1, jnp.bfloat16), {}, None)
            return out.state.slots["second_moment"]

        assert second_moment(0.999) == second_moment(jnp.float32(0.999))

    def test_norms_in_half_precision(self):
        clipped = hg.clip_by_norm(1.0)(jnp.full(4, 300, jnp.float16), jnp.ones(4), {})
        np.testing.assert_allclose(clipped, 0.5)
        with pytest.raises(ValueError, match=r"clip_by_norm has the bound -1.0"):
            hg.clip_by_norm(-1.0)

    def test_integers_that_would_wrap(self):
        with pytest.raises(ValueError, match=r"a setting has 1099511627776 at \['x'\], beyond"):
            hg.sweep(lambda hparams, key, data: hparams["x"], [{"x": 2**40}, {"x": 3}], None)

    def test_a_forgotten_schedule_in_fit(self):
        rule = hg.sgd(self.loss)
        with pytest.raises(ValueError, match=r"\['learning_rate'\] .* would serve as a schedule"):
            hg.fit(rule, jnp.ones(4), {"learning_rate": jnp.ones(4)}, None, num_epochs=4)

    def test_a_forgotten_schedule_in_a_later_length_is_refused_first(self, tmp_path):
        """Before any run: not when the runs of a tuning have grown to a number of weights."""
        with pytest.raises(ValueError, match=r"\['learning_rate'\] .* would serve as a schedule"):
            hg.tune(
                lambda params, hparams, valid: self.loss(params, hparams, None, None),
                hg.Run(hg.sgd(self.loss), num_steps=2),
                jnp.ones(4),
                {"learning_rate": jnp.ones(4)},
                None,
                num_meta_steps=2,
                lengths=lambda meta_step: 2 + 2 * (meta_step == 1),
                optimizer=optax.sgd(0.01),
                records=hg.Records(tmp_path / "tuning"),
            )
        assert not (tmp_path / "tuning").exists()

    def test_images_without_channels(self):
        with pytest.raises(ValueError, match=r"a CNN takes images \[B, H, W, C\]: got \[6, 8, 8\]"):
            CNN(3, channels=(2,)).init(jax.random.key(0), jnp.ones((6, 8, 8)), train=False)

    def test_examples(self):
        with pytest.raises(ValueError, match="data has no examples"):
            num_examples((jnp.ones((0, 2)),))
        with pytest.raises(ValueError, match="a label is one integer"):
            validate_examples((np.ones((2, 2)), np.array([[0, 1], [0, 9]])), 3)


def test_a_jacobian_of_nothing():
    rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params**2), learning_rate=0.1)
    with pytest.raises(ValueError, match="hparams is an empty tree; there is nothing"):
        hg.jacobian_of_final_params(hg.Run(rule, num_steps=2), jnp.ones(2), {}, None)

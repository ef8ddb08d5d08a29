"""Bad input of the outer layer: each a sentence that names it, before anything is computed.

Beside `test_hyper` and `test_tune`, where the commonest of each kind are.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax import hyper
from hgrad_jax.data import minibatches, shared_examples
from tests.shared.tune_child import HPARAMS, RULE, TRAIN, VALID, loss, objective, tune

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}


class TestSharing:
    @pytest.mark.parametrize("value", ["0.5", None, [0.5], np.ones(3), jnp.ones((1, 1)), True])
    @pytest.mark.parametrize("make", [hyper.per_tensor, hyper.one_for_all])
    def test_a_start_that_is_no_number(self, make, value):
        with pytest.raises(ValueError, match=r"value is .*, but init fills the small tree with"):
            make().init(PARAMS, value)

    def test_a_start_may_be_traced(self):
        found = jax.jit(lambda x: hyper.per_tensor().init(PARAMS, x))(0.5)
        assert {k: float(v) for k, v in found.items()} == {"w": 0.5, "b": 0.5}

    @pytest.mark.parametrize("make", [hyper.per_tensor, hyper.one_for_all])
    def test_params_that_are_no_floats(self, make):
        with pytest.raises(TypeError, match=r"params\['n'\] has dtype int32, of which no hyper"):
            make().init({"n": jnp.ones(3, jnp.int32)}, 0.5)
        with pytest.raises(TypeError, match=r"params\['n'\] is 'a', not an array of floats; pass"):
            make().init({"n": "a"}, 0.5)

    @pytest.mark.parametrize("made", [3, None, (1.0,), "2", (2, 1), (2, 3, 1)])
    def test_a_shape_map_that_makes_no_shape(self, made):
        with pytest.raises(ValueError, match=r"shape_map makes .* of params\['.'\].*tuple of ints"):
            hyper.by_shape(lambda shape: made).init(PARAMS, 0.5)

    @pytest.mark.parametrize("shape_map", [(2, 3), None, lambda rows, columns: rows])
    def test_a_shape_map_that_is_no_function_of_a_shape(self, shape_map):
        with pytest.raises(TypeError, match=r"called as shape_map\(shape\); pass a function that"):
            hyper.by_shape(shape_map)

    @pytest.mark.parametrize("num_steps", [None, 5.0, "5", True])
    def test_windows_of_no_number_of_steps(self, num_steps):
        with pytest.raises(TypeError, match=r"num_steps is .*; it must be an int, the number of"):
            hyper.over_windows(jnp.ones(2), num_steps)

    def test_windows_of_a_traced_number_of_steps(self):
        with pytest.raises(TypeError, match=r"num_steps is .*make it a static argument under jit"):
            jax.jit(lambda n: hyper.over_windows(jnp.ones(2), n))(5)

    @pytest.mark.parametrize(
        ("small", "message"),
        [
            ({"w": jnp.ones((1, 3))}, r"a sharing map expands a tree of shapes \{'b': \(3,\), 'w'"),
            ({"w": jnp.ones((2, 1)), "b": jnp.ones(3)}, r"got \{'b': \(3,\), 'w': \(2, 1\)\}"),
            (jnp.float32(1), r"got \(\); make it with its init"),
        ],
    )
    def test_in_a_loss_that_is_tuned(self, small, message):
        """What does not fit is told when a tuning is set up, before any step."""
        steps = []

        def penalized(params, hparams, batch, key):
            jax.debug.callback(lambda: steps.append(1))
            expanded = hyper.per_output_unit().expand(hparams["log_l2"], params)
            return hyper.l2(params, jax.tree.map(jnp.exp, expanded))

        with pytest.raises(ValueError, match=message):
            hg.tune(
                lambda params, hparams, valid: jnp.sum(params["w"]),
                hg.Run(hg.sgd(penalized, learning_rate=0.1), num_steps=2),
                PARAMS,
                {"log_l2": small},
                None,
                num_meta_steps=1,
                optimizer=optax.sgd(0.1),
                progress=False,
            )
        assert steps == []

    def test_scales_that_do_not_fit_the_weights(self):
        with pytest.raises(ValueError, match=r"log_scale has shape \(4,\) where a parameter has"):
            hyper.weights_of(PARAMS, {"w": jnp.ones(4), "b": 0.0})
        with pytest.raises(TypeError, match=r"log_scale is '1'; it must be a number or an array"):
            hyper.weights_of(PARAMS, "1")
        rescaled = hyper.rescaled(lambda params, hparams, batch, key: jnp.float32(0))
        with pytest.raises(ValueError, match="log_scale is not a prefix of the parameters"):
            rescaled(PARAMS, {"log_scale": {"w": 1.0}, "log_penalty": 0.0}, None, None)


class TestRanges:
    @pytest.mark.parametrize("value", ["a", 1j, True])
    @pytest.mark.parametrize("name", ["log", "log10", "logit", "softplus", "one_minus_exp"])
    def test_values_that_are_no_real_numbers(self, name, value):
        with pytest.raises(TypeError, match=rf"no real number, of which {name} could be taken"):
            getattr(hyper, name).from_value({"rate": value})

    def test_a_value_that_is_missing(self):
        with pytest.raises(TypeError, match="the value is None, no real number, of which log"):
            hyper.log.from_value(None)
        found = hyper.log.from_value({"rate": 1.0, "nothing": None})
        assert float(found["rate"]) == 0
        assert found["nothing"] is None

    @pytest.mark.parametrize(
        ("name", "value", "rounded"),
        [
            ("log", 1e-50, "0.0"),
            ("log10", 1e50, "inf"),
            ("logit", 1 - 1e-12, "1.0"),
            ("one_minus_exp", 1 - 1e-12, "1.0"),
            ("softplus", 1e-60, "0.0"),
        ],
    )
    def test_values_that_round_to_an_end(self, name, value, rounded):
        message = rf"\['x'\]\[0\] is .*, which is {rounded} in float32, but {name} has values in"
        with pytest.raises(ValueError, match=message):
            getattr(hyper, name).from_value({"x": [value]})
        with jax.enable_x64(True):
            (found,) = getattr(hyper, name).from_value({"x": [value]})["x"]
            assert np.isfinite(found)

    def test_values_at_which_the_derivative_is_zero(self):
        """Inside, and the inverse is finite, but no hypergradient would ever move them."""
        near = np.float32(1) - np.float32(2.0**-24)
        message = r"\['x'\] is .*0\.99999994.*, so near to an end of logit that its slope is 0 in"
        for transform in (lambda f: f, jax.jit):
            with pytest.raises(ValueError, match=message):
                transform(lambda: hyper.logit.from_value({"x": near}))()
        u = hyper.logit.from_value(np.array([0.999999, 1e-30], np.float32))
        assert np.all(np.asarray(jax.jvp(hyper.logit.to_value, (u,), (jnp.ones(2),))[1]) > 0)
        with jax.enable_x64(True):
            hyper.logit.from_value({"x": float(near)})

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_tuning_that_would_start_from_no_number(self, bad):
        start = HPARAMS | {"log_rate": jnp.array([0.0, bad])}
        with pytest.raises(ValueError, match=r"hparams\['log_rate'\] has 1 numbers that are inf"):
            tune(hparams=start)
        with pytest.raises(ValueError, match=r"params has 2 numbers that are infinite or NaN"):
            tune(jnp.array([bad, 1.0, bad]))

    def test_a_logarithm_of_nothing_under_jit(self):
        """There a value out of range cannot raise: it is NaN, and the tuning refuses that."""
        log_rate = jax.jit(hyper.log.from_value)(jnp.array([0.1, 0.0]))
        with pytest.raises(ValueError, match="the first is nan; a tuning starts from finite ones"):
            tune(hparams=HPARAMS | {"log_rate": log_rate})


class TestOverlap:
    """Beyond parts of the same containers."""

    PLACES = np.arange(12)

    @pytest.mark.parametrize(
        ("train", "valid"),
        [
            ((*TRAIN, PLACES), tuple(x[4:6] for x in TRAIN)),
            ((TRAIN[0], PLACES.astype(np.int32), TRAIN[1]), tuple(x[4:6] for x in TRAIN)),
            (TRAIN, (*(x[4:6] for x in TRAIN), np.arange(2))),
            (TRAIN, {"inputs": TRAIN[0][4:6], "labels": TRAIN[1][4:6]}),
            (TRAIN, (TRAIN[0][4:6].reshape(2, 1, 3), TRAIN[1][4:6])),
            ((*TRAIN, PLACES), (*(x[4:6] for x in TRAIN), PLACES[:2])),
        ],
        ids=["places", "places between", "the other way round", "container", "shape", "own places"],
    )
    def test_copies_are_found(self, train, valid):
        assert shared_examples(train, valid).tolist() == [[4, 0], [5, 1]]
        with pytest.raises(ValueError, match=r"outer_data overlaps data: 2 .* 0 and data's 4"):
            tune(train=train, valid=valid)

    @pytest.mark.parametrize(
        "valid",
        [
            (np.arange(12, dtype=np.int32),),
            np.arange(12, dtype=np.int32),
            (np.ones((12, 3), np.float32), np.arange(12, dtype=np.int32)),
            (np.ones((12, 2), np.float32), np.arange(12, dtype=np.int32), np.zeros(12)),
        ],
        ids=["labels", "bare labels", "other images", "other shapes"],
    )
    def test_labels_alone_are_no_examples(self, valid):
        """As where the images are learned."""
        images = np.zeros((12, 3), np.float32)
        labels = np.arange(12, dtype=np.int32)
        assert not len(shared_examples((images, labels), valid))
        assert not len(shared_examples(valid, (images, labels)))

    def test_the_same_input_with_another_label_is_another_example(self):
        assert not len(shared_examples(TRAIN, (TRAIN[0], TRAIN[1] + 1)))


SETTINGS = {"num_meta_steps": 2, "num_runs": 2}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The folder of a tuning of two meta-steps."""
    folder = tmp_path_factory.mktemp("records") / "run"
    tune(records=hg.Records(folder, figures_every=None), **SETTINGS)
    return folder


class TestFolders:
    """Of another configuration; `test_tune` has the data, the key, the optimizer and others."""

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"adjoint": hg.Truncated(2)}, "program"),
            ({"batch_fn": minibatches(4)}, "program"),
            ({"objective": lambda params, hparams, valid: jnp.sum(params**2)}, "program"),
            ({"init": lambda key: jnp.ones(3)}, "program"),
            ({"init": jnp.ones(3)}, "params"),
            ({"num_runs": 3}, "num_runs"),
            ({"fresh_splits": True}, "fresh_splits"),
            ({"early_stopping": hg.EarlyStopping("value")}, "early_stopping"),
            ({"train": tuple(x[:11] for x in TRAIN)}, "data"),
        ],
        ids=lambda x: x if isinstance(x, str) else next(iter(x)),
    )
    def test_it_is_refused_with_what_differs(self, change, name, recorded):
        files = sorted(recorded.rglob("*"))
        lines = (recorded / "meta_steps.jsonl").read_bytes()
        with pytest.raises(hg.CheckpointError, match=rf"another run, which differs in [^;]*{name}"):
            tune(records=hg.Records(recorded, figures_every=None), **SETTINGS | change)
        assert sorted(recorded.rglob("*")) == files
        assert (recorded / "meta_steps.jsonl").read_bytes() == lines

    def test_a_folder_of_another_kind_of_run(self, tmp_path):
        """Of `fit`, whose checkpoints look the same from outside."""
        hg.fit(
            RULE,
            jnp.zeros(3),
            {"learning_rate": 0.1, "log_l2": -3.0},
            TRAIN,
            num_epochs=1,
            batch_fn=minibatches(4),
            checkpoints=hg.Checkpoints(tmp_path / "checkpoints"),
            loss=loss,
            progress=False,
        )
        with pytest.raises(hg.CheckpointError, match=r"another run, which differs in .*optimizer"):
            tune(records=hg.Records(tmp_path, figures_every=None), **SETTINGS)


class TestProjected:
    @staticmethod
    def onto_box(tree):
        return jax.tree.map(lambda x: jnp.clip(x, -1.0, 0.5), tree)

    def test_it_is_projected_gradient_descent(self):
        optimizer = hg.projected(optax.sgd(0.25, momentum=0.5), self.onto_box)
        inner = optax.sgd(0.25, momentum=0.5)
        h: Any = {"a": jnp.array([0.0, -0.75]), "b": jnp.float32(0.25)}
        state, inner_state, ends = optimizer.init(h), inner.init(h), []
        for g in ([1.0, 2.0, -1.0], [-8.0, 0.5, 0.5], [1.0, -1.0, 1.0]):
            gradient = {"a": jnp.array(g[:2]), "b": jnp.float32(g[2])}
            update, state = optimizer.update(gradient, state, h)
            free, inner_state = inner.update(gradient, inner_state, h)
            want = jax.tree.map(lambda x, u: np.clip(x + u, -1.0, 0.5), h, free)
            h = optax.apply_updates(h, update)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), h, want)
            ends.append(float(h["a"][1]))
        assert ends == [-1.0, -1.0, -0.9375]

    def test_a_tuning_stays_where_it_may_be(self):
        def bounded(hparams):
            return {"rate": jnp.clip(hparams["rate"], 0.01, 0.06)}

        def one(params, hparams, batch, key):
            return jnp.mean((batch[0] @ params - batch[1]) ** 2)

        out = hg.tune(
            objective,
            hg.Run(hg.sgd(one, learning_rate=hg.field("rate")), num_steps=3),
            jnp.zeros(3),
            {"rate": jnp.float32(0.02)},
            TRAIN,
            VALID,
            num_meta_steps=4,
            optimizer=hg.projected(optax.adam(0.05), bounded),
            progress=False,
        )
        path = [*out.history.hparams["rate"]["mean"], float(out.hparams["rate"])]
        np.testing.assert_allclose(path, [0.02, 0.06, 0.06, 0.06, 0.06], rtol=1e-5)

    def test_bad_input(self):
        with pytest.raises(TypeError, match=r"optimizer is 0\.1; it must be an optax trans"):
            hg.projected(0.1, self.onto_box)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match=r"projection is 1.0, but is called as projection\(hp"):
            hg.projected(optax.sgd(1.0), 1.0)  # pyright: ignore[reportArgumentType]
        optimizer = hg.projected(optax.sgd(1.0), lambda h: h[:1])
        state = optimizer.init(jnp.ones(2))
        with pytest.raises(ValueError, match="projected needs the hyperparameters to step from"):
            optimizer.update(jnp.ones(2), state)
        with pytest.raises(ValueError, match=r"projection returned float32\[1\] for hyperparam"):
            optimizer.update(jnp.ones(2), state, jnp.ones(2))

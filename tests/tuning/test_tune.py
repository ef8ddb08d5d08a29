"""Tuning beside the loop that one would write, parts that share examples, and what it refuses."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.data import minibatches, shared_examples
from hgrad_jax.tuning.splits import resplit
from tests.shared.tune_child import (
    AXES,
    HPARAMS,
    KEY,
    RULE,
    TEST,
    TRAIN,
    VALID,
    init_params,
    linear_data,
    metrics,
    objective,
    run_hparams,
    tune,
)
from tests.shared.tunings import assert_close, read_lines, same_bits


@functools.cache
def by_hand(num_runs, is_fresh):
    """The loop of three meta-steps that a user would write."""

    @jax.jit
    def gradients(hparams, keys):
        def value(hparams, key):
            key_init, key_run = jax.random.split(key)
            out = hg.unroll(
                hg.Run(RULE, num_steps=4, batch_fn=minibatches(5), hparams_axes=AXES),
                init_params(key_init),
                run_hparams(hparams, 4),
                TRAIN,
                key=key_run,
            )
            return objective(out.params, hparams, VALID)

        return jax.vmap(jax.value_and_grad(value), in_axes=(None, 0))(hparams, keys)

    hparams, values, found = HPARAMS, [], HPARAMS
    for k in range(3):
        key = jax.random.fold_in(jax.random.fold_in(KEY, 0), k if is_fresh else 0)
        value, found = gradients(hparams, jax.random.split(key, num_runs))
        hparams = jax.tree.map(lambda h, g: h - 0.1 * jnp.sign(g.mean(0)), hparams, found)
        values.append(value)
    return hparams, np.stack(values), found


class TestTune:
    @pytest.mark.parametrize(("num_runs", "is_fresh"), [(1, True), (3, False)])
    def test_it_is_the_loop_that_one_would_write(self, num_runs, is_fresh):
        out = tune(num_runs=num_runs, fresh_seeds=is_fresh)
        hparams, values, gradients = by_hand(num_runs, is_fresh)
        assert_close(out.hparams, hparams)
        assert_close(out.history.value, values)
        mean = jax.tree.map(lambda g: g.mean(0), gradients)
        assert_close(
            out.history.norm[-1], np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(mean)))
        )
        assert_close(out.history.hparams["log_rate"]["norm"][-1], np.linalg.norm(mean["log_rate"]))
        if num_runs > 1:
            variances = [np.var(g, axis=0, ddof=1).sum() for g in jax.tree.leaves(gradients)]
            assert_close(out.history.spread[-1], np.sqrt(sum(variances)))
        else:
            assert np.isnan(out.history.spread).all()
        assert out.reason == "all meta-steps are done"
        assert out.best is None
        assert out.resumed_at is None

    def test_counts_may_be_of_numpy(self):
        one = np.int64(1)
        out = tune(num_meta_steps=one, num_runs=one, num_steps=np.int64(4), batch_parts=one)
        assert out.history.value.shape == (1, 1)

    def test_seeds_are_fresh_or_fixed(self):
        starts = {"objective": lambda params, hparams, valid: params[0], "num_meta_steps": 2}
        fixed = tune(optimizer=optax.sgd(0.0), fresh_seeds=False, **starts).history.value
        fresh = tune(optimizer=optax.sgd(0.0), **starts).history.value
        assert fixed[0] == fixed[1] == fresh[0] != fresh[1]

    def test_runs_may_grow_and_each_length_is_compiled_once(self, tmp_path):
        lengths = []

        def counted(hparams, num_steps):
            lengths.append(num_steps)
            return run_hparams(hparams, num_steps)

        def growing(meta_step):
            return (2, 3, 3, 2)[meta_step]

        tune(
            run_hparams=counted,
            lengths=growing,
            num_meta_steps=3,
            records=hg.Records(tmp_path, figures_every=None),
        )
        # Once for the check before anything runs, and once for the program.
        assert sorted(lengths) == [2, 2, 3, 3]
        again = tune(
            lengths=growing,
            num_meta_steps=4,
            run_hparams=counted,
            records=hg.Records(tmp_path, figures_every=None),
        )
        assert again.resumed_at == 3
        assert again.history.num_steps.tolist() == [2, 3, 3, 2]
        assert same_bits(again, tune(lengths=growing, num_meta_steps=4))
        with pytest.raises(hg.CheckpointError, match="differs in num_steps: 3 in meta-step 1"):
            tune(
                lengths=lambda k: 2,
                num_meta_steps=4,
                run_hparams=counted,
                records=hg.Records(tmp_path, figures_every=None),
            )

    def test_splits_are_fresh_and_keep_the_examples(self):
        def seen(params, hparams, valid):
            return jnp.sum(valid[1]) + 0 * jnp.sum(params)

        frozen = {"objective": seen, "optimizer": optax.sgd(0.0), "init": jnp.zeros(3)}
        fresh = tune(fresh_splits=True, **frozen).history.value[:, 0]
        assert len(set(fresh.tolist())) == 3
        everything = np.concatenate([TRAIN[1], VALID[1]])
        for k in range(3):
            key = jax.random.fold_in(jax.random.fold_in(KEY, 1), k)
            train, valid = resplit(TRAIN, VALID, key)
            np.testing.assert_allclose(fresh[k], valid[1].sum(), rtol=1e-5)
            assert sorted([*train[1].tolist(), *valid[1].tolist()]) == sorted(everything.tolist())
            np.testing.assert_array_equal(
                sorted(np.concatenate([train[0], valid[0]])[:, 0]),
                sorted(np.concatenate([TRAIN[0], VALID[0]])[:, 0]),
            )

    def test_the_test_data_change_nothing_but_what_is_reported(self):
        out = tune(test=TEST, metrics=metrics)
        other = tune(test=linear_data(5, 99), metrics=metrics)
        assert out.history.metrics.keys() == {"valid_error", "test_error"}
        assert same_bits(
            out._replace(history=out.history._replace(metrics={})),
            other._replace(history=other.history._replace(metrics={})),
        )
        different = out.history.metrics["test_error"] != other.history.metrics["test_error"]
        assert different.all()

    def test_early_stopping_keeps_the_best(self):
        out = tune(
            num_meta_steps=30,
            optimizer=optax.sgd(-0.5),  # uphill
            fresh_seeds=False,
            early_stopping=hg.EarlyStopping("value", patience=2),
        )
        assert out.reason == "value has not improved since meta-step 0"
        assert out.best is not None
        assert out.best.meta_step == 0
        assert out.history.value.shape == (3, 1)
        assert out.best.value == out.history.value[0, 0]
        assert_close(out.best.hparams, HPARAMS)

    def test_reversible_runs_say_that_they_are_restored_and_a_bar_goes_on(self, tmp_path, capsys):
        def plain_loss(params, hparams, batch, key):
            return jnp.sum((params - 1.0) ** 2)

        out = hg.tune(
            lambda params, hparams, valid: jnp.sum((params - 1.0) ** 2),
            hg.Run(hg.momentum(plain_loss), num_steps=5, adjoint=hg.Reversible()),
            jnp.zeros(2),
            {"learning_rate": 0.1, "momentum": 0.9},
            None,
            num_meta_steps=2,
            optimizer=hg.nonnegative_adam(0.01),
            records=hg.Records(tmp_path, figures_every=None),
            progress=True,
        )
        assert "meta-step 2/2" in capsys.readouterr().err
        assert [line["is_restored"] for line in read_lines(tmp_path)] == [True, True]
        assert out.history.value[1, 0] < out.history.value[0, 0]


def grown(updates, state, params=None):
    return updates, (state, state)


GROWING = optax.GradientTransformation(lambda params: 0.0, grown)


class TestSharedExamples:
    def test_all_copies_are_found_and_nothing_else(self):
        x, y = TRAIN
        other = (
            np.concatenate([x[3:5], VALID[0], x[7:8]]),
            np.concatenate([y[3:5], VALID[1], y[:1]]),
        )
        assert shared_examples(TRAIN, other).tolist() == [
            [3, 0],
            [4, 1],
        ]  # the last's label is other
        assert shared_examples(TRAIN, TRAIN).tolist() == [[i, i] for i in range(12)]
        assert not len(shared_examples(TRAIN, VALID))

    @pytest.mark.parametrize(
        "other", [None, TRAIN[0], (TRAIN[0][:, :2], TRAIN[1]), (np.float32(1.0), np.float32(2.0))]
    )
    def test_other_kinds_share_nothing(self, other):
        assert shared_examples(TRAIN, other).shape == (0, 2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"valid": tuple(x[5:9] for x in TRAIN)},
            ValueError,
            "outer_data overlaps data: 4 of its .* 5",
        ),
        (
            {"test": VALID, "metrics": metrics},
            ValueError,
            "test_data overlaps outer_data: 6 of its",
        ),
        ({"train": "mnist"}, TypeError, "data is 'mnist'; data must be a pytree of arrays"),
        ({"num_meta_steps": 0}, ValueError, "num_meta_steps is 0; it must be a positive int"),
        ({"num_runs": 1.5}, ValueError, "num_runs is 1.5; it must be a positive int"),
        ({"lengths": lambda k: 2 - (k > 0)}, ValueError, "at least one and at most num_steps = 1"),
        ({"lengths": lambda k: 2.0}, TypeError, r"lengths\(0\) is 2.0; it must be an int"),
        ({"key": 0}, TypeError, "key is 0, not one PRNG key"),
        ({"key": None}, ValueError, "key is None, but several runs, fresh splits and random"),
        ({"optimizer": 0.1}, TypeError, "optimizer is 0.1; it must be an optax transformation"),
        ({"on_bad": "skip"}, TypeError, r"on_bad is 'skip'; it must be hg.Stop\(\) or hg.Skip"),
        ({"records": "folder"}, TypeError, r"records is 'folder'; it must be an hg.Records"),
        ({"test": TEST}, ValueError, "test_data is given, but metrics is None"),
        (
            {"valid": None, "metrics": metrics},
            ValueError,
            "metrics is given, but neither outer",
        ),
        (
            {"metrics": lambda params, data: jnp.float32(0.5)},
            ValueError,
            "it must return a dict of scalars by name",
        ),
        ({"hparams": {}, "run_hparams": None}, ValueError, "hparams is an empty tree"),
        ({"hparams": {"a": 1}}, TypeError, r"hparams\['a'\] has dtype int32"),
        ({"train": (TRAIN[0], TRAIN[1] * np.nan)}, ValueError, r"data\[1\] has 12 numbers"),
        ({"fresh_splits": True, "valid": VALID[0]}, ValueError, "fresh_splits is True, but an ex"),
        ({"run_hparams": lambda h: h}, TypeError, r"called as run_hparams\(hparams, num_steps\)"),
        (
            {"run_hparams": lambda h, n: None},
            ValueError,
            r"run_hparams\(hparams, num_steps\) returned None; it must return the hyperparameters",
        ),
        (
            {"run_hparams": lambda h, n: {"learning_rate": "a"}},
            TypeError,
            r"run_hparams\(hparams, num_steps\)\['learning_rate'\] is 'a', not an array of floats",
        ),
        (
            {"run_hparams": lambda h, n: h if h["log_l2"] > 0 else None},
            TypeError,
            r"run_hparams asks a traced array for its value, .*; write jnp.where or jax.lax.cond",
        ),
        (
            {"metrics": lambda params, data, x: {}},
            TypeError,
            r"metrics takes \(params, data, x\), but is called as metrics\(params, data\)",
        ),
        (
            {"metrics": metrics, "metrics_args": (TRAIN,)},
            TypeError,
            r"metrics takes \(params, data\), but is called as metrics\(params, data, args_0\)",
        ),
        ({"metrics": metrics, "metrics_args": TRAIN[0]}, TypeError, "it must be a tuple of what"),
        (
            {"early_stopping": hg.EarlyStopping("test_error"), "test": TEST, "metrics": metrics},
            ValueError,
            "follows 'test_error', but the test data must not choose",
        ),
        (
            {"early_stopping": hg.EarlyStopping("valid_loss")},
            ValueError,
            "early_stopping follows 'valid_loss'; the metrics are value",
        ),
        (
            {"optimizer": GROWING},
            ValueError,
            "optimizer.update changes the kind of hyperparameters or of its own state",
        ),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        tune(**settings)


def test_inside_of_a_program():
    with pytest.raises(TypeError, match=r"tune cannot run inside jit.*hg\.meta_steps is for that"):
        jax.jit(lambda x: tune(hparams=HPARAMS | {"log_l2": x}).hparams)(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hg.sign_descent(0.1, momentum=cast(Any, "a")), "momentum is 'a'; it must be at"),
        (lambda: hg.nonnegative_adam(0.1, b1=2.0), "b1 is 2.0; it must be at least 0 and below 1"),
        (lambda: hg.nonnegative_adam(0.1, eps=-1.0), "eps is -1.0; it must be a number, at least"),
    ],
)
def test_settings_of_optimizers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_at_most_is_positive():
    with pytest.raises(ValueError, match="at_most is 0; it must be a positive int"):
        hg.Skip(0)

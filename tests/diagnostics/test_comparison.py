"""`compare`: its numbers by hand, its table, JSON and figure, and what it refuses."""

# pyright: reportOperatorIssue=false, reportOptionalOperand=false

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg

NUM_STEPS = 30


def loss(params, hparams, batch, key):
    return jnp.sum(jnp.cosh(params - hparams["centre"]))


def objective(params, hparams, target):
    return jnp.sum((params - target) ** 2)


HPARAMS = {"centre": jnp.arange(3.0), "rate": jnp.float32(0.05)}


def compared(adjoints, transition=None, num_steps=NUM_STEPS, **changes):
    rule = transition or hg.momentum(loss, learning_rate=hg.field("rate"), momentum=0.8)
    run = hg.Run(rule, num_steps=num_steps)
    arrays = (jnp.zeros(3), HPARAMS, None, jnp.ones(3))
    return hg.compare(objective, run, *arrays, adjoints=adjoints, **changes)


@pytest.fixture(scope="module")
def found():
    return compared(
        {"all": hg.Direct(), "back": hg.Reversible(), "few": hg.Truncated(3), "sgd": hg.DrMAD()}
    )


def test_numbers_by_hand(found):
    def hypergradient(adjoint):
        rule = hg.momentum(loss, learning_rate=hg.field("rate"), momentum=0.8)
        run = hg.Run(rule, num_steps=NUM_STEPS, adjoint=adjoint)

        def value(hparams):
            out = hg.unroll(run, jnp.zeros(3), hparams, None)
            return objective(out.params, hparams, jnp.ones(3))

        error, gradient = jax.value_and_grad(value)(HPARAMS)
        return error, np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)])

    value, want = hypergradient(hg.Direct())
    _, few = hypergradient(hg.Truncated(3))
    row = found.rows[2]
    assert found.num_hparams == 4
    assert found.num_steps == NUM_STEPS
    np.testing.assert_allclose(row.value, value, rtol=1e-5)
    np.testing.assert_allclose(row.norm, np.linalg.norm(few), rtol=1e-5)
    cosine = few @ want / np.linalg.norm(few) / np.linalg.norm(want)
    np.testing.assert_allclose(row.cosine, cosine, rtol=1e-5)
    np.testing.assert_allclose(row.sign_cosine, np.sign(few) @ np.sign(want) / 4, rtol=1e-5)
    error = np.linalg.norm(few - want) / np.linalg.norm(want)
    np.testing.assert_allclose(row.relative_error, error, rtol=1e-4)
    assert row.seconds > 0
    assert row.temp_bytes > 0
    exact = found.rows[1]
    assert exact.relative_error < 1e-5
    assert [r.cosine for r in found.rows[:2]] == pytest.approx([1, 1], abs=1e-6)


def test_table_and_json(found):
    lines = str(found).splitlines()
    assert lines[0] == "4 hyperparameters, 30 steps"
    assert [line.split()[0] for line in lines[1:]] == ["adjoint", "all", "back", "few", "sgd"]
    read = json.loads(found.to_json())
    assert read["num_hparams"] == 4
    assert [row["name"] for row in read["rows"]] == ["all", "back", "few", "sgd"]
    assert read["rows"][2]["cosine"] == found.rows[2].cosine


def test_figure(found, tmp_path):
    figure = found.plot()
    figure.savefig(tmp_path / "costs.png")
    assert (tmp_path / "costs.png").stat().st_size > 5000
    left, right = figure.axes
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in left.lines}
    assert {(row.temp_bytes / 1e6, row.cosine) for row in found.rows} <= points
    assert right.get_xlabel() == "seconds"


def test_an_adjoint_that_cannot_serve_has_a_row_that_says_why():
    rule = hg.sgd(loss, learning_rate=hg.field("rate"))
    found = compared([hg.Direct(), hg.Reversible()], transition=rule, repeats=0)
    row = found.rows[1]
    assert row.cosine is None
    assert row.temp_bytes is None
    assert "cannot" in row.problem
    assert "Reversible" in str(found).splitlines()[-1]
    assert found.rows[0].seconds > 0


def test_what_has_no_hypergradient_is_named():
    found = compared([hg.Direct(), hg.ForwardMode(memory=1.0)])
    assert "one tangent" in found.rows[1].problem
    with pytest.raises(ValueError, match=r"reference Direct\(\) has no finite hypergradient"):
        hg.compare(
            lambda params, hparams, outer: jnp.sum(jnp.sqrt(params * 0)),
            hg.Run(hg.momentum(loss, learning_rate=hg.field("rate"), momentum=0.8), num_steps=2),
            jnp.zeros(3),
            HPARAMS,
            None,
            adjoints=[hg.Direct()],
        )


def test_a_reference_of_its_own_comes_first():
    found = compared([hg.Truncated(3), hg.Direct()], reference=hg.Direct(), repeats=0)
    assert [row.name for row in found.rows] == ["Direct()", "Truncated(window=3)"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adjoints": []}, "adjoints is empty"),
        ({"adjoints": hg.Direct()}, r"adjoints is Direct\(\); put it into a list"),
        ({"repeats": -1}, "repeats is -1; .* at least 0"),
        ({"repeats": 1.5}, "repeats is 1.5; .* an int"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compared(**({"adjoints": [hg.Direct()]} | changes))


def test_not_inside_jit():
    def norm(start):
        rule = hg.momentum(loss, learning_rate=hg.field("rate"), momentum=0.8)
        given = (objective, hg.Run(rule, num_steps=2), start, HPARAMS, None, jnp.ones(3))
        return hg.compare(*given, adjoints=[hg.Direct()]).rows[0].norm

    with pytest.raises(TypeError, match="cannot run inside jit"):
        jax.jit(norm)(jnp.zeros(3))


def test_a_zero_reference_has_no_direction():
    def bowl(params, hparams, batch, key):
        return jnp.sum(params**2)

    rule = hg.momentum(bowl, learning_rate=0.1, momentum=0.8)
    found = compared([hg.Direct(), hg.Truncated(1)], transition=rule, num_steps=2)
    assert all(row.norm == 0 and row.cosine is None and row.problem for row in found.rows)

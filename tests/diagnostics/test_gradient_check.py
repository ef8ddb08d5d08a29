"""The checker finds errors that were planted, and none where there are none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from hgrad_jax.diagnostics.differences import central_differences
from hgrad_jax.diagnostics.gradient_check import check_gradient, check_hypergradient
from hgrad_jax.models import losses
from tests.shared.runs import run_with

NUM_STEPS = 6
INPUTS = jax.random.normal(jax.random.key(1), (6, 3))
DATA = (INPUTS, INPUTS @ jnp.array([1.0, -2.0, 0.5]) + 0.1)
START = {"w": jnp.array([0.3, -0.1, 0.2]), "b": jnp.float32(0.1)}
HPARAMS = {
    "log_l2": jnp.float32(-2.0),
    "log_rate": jnp.linspace(-3.0, -2.0, NUM_STEPS),
    "momentum": jnp.float32(0.9),
}
AXES = {"log_l2": None, "log_rate": 0, "momentum": None}


@jax.custom_vjp
def wrong_exp(x):
    return jnp.exp(x)


wrong_exp.defvjp(lambda x: (jnp.exp(x), jnp.exp(x)), lambda y, bar: (1.01 * y * bar,))


@jax.custom_jvp
def also_wrong_exp(x):
    return jnp.exp(x)


also_wrong_exp.defjvp(lambda x, dot: (jnp.exp(x[0]), 1.01 * jnp.exp(x[0]) * dot[0]))


def residual(params, batch):
    return batch[0] @ params["w"] + params["b"] - batch[1]


def loss(params, hparams, batch, key):
    noise = 0.1 * jax.random.normal(key, (6,))
    l2 = jnp.exp(hparams["log_l2"]) * jnp.sum(params["w"] ** 2)
    return jnp.mean(jnp.cosh(residual(params, batch) + noise)) + l2


def objective(params, hparams, valid):
    return jnp.mean(residual(params, valid) ** 2) + 0.3 * hparams["log_l2"] ** 2


def report_of(adjoint=None, rate=jnp.exp, **changes):
    given = {
        "adjoint": hg.Direct() if adjoint is None else adjoint,
        "objective": objective,
        "transition": hg.momentum(loss, learning_rate=lambda h: rate(h["log_rate"])),
        "params": START,
        "hparams": HPARAMS,
        "data": DATA,
        "outer_data": (INPUTS[::-1] * 0.7, DATA[1]),
        "num_steps": NUM_STEPS,
        "key": jax.random.key(0),
        "hparams_axes": AXES,
    }
    given |= changes
    arrays = [given.pop(name) for name in ("params", "hparams", "data", "outer_data")]
    check = functools.partial(hg.check_hypergradient, given.pop("objective"))
    return run_with(check, given.pop("transition"), *arrays, **given)


@pytest.mark.parametrize(
    "adjoint", [hg.Direct(), hg.Checkpointed(), hg.Reversible(), hg.ForwardMode()], ids=repr
)
def test_right_hypergradients_agree_to_1e_9(adjoint):
    changes = {}
    if isinstance(adjoint, hg.ForwardMode):  # not for schedules, nor for initial parameters
        changes = {"hparams": HPARAMS | {"log_rate": jnp.float32(-2.5)}, "hparams_axes": None}
    report = report_of(adjoint, **changes)
    assert report.raise_if_wrong() is report
    assert report.worst.relative_error < 1e-9
    assert not any(e.is_wrong or e.is_unreliable for e in report.entries + report.directions)
    of_params = {e.path for e in report.entries if e.path.startswith("params")}
    assert len(of_params) == (0 if changes else 2)
    assert report.why_no_directions is None


@pytest.mark.parametrize("adjoint", [hg.Direct(), hg.Reversible()], ids=repr)
def test_an_error_planted_in_a_custom_vjp_is_caught(adjoint):
    report = report_of(adjoint, wrong_exp, num_samples=2)
    assert {e.path for e in report.entries if e.is_wrong} == {"hparams['log_rate']"}
    assert report.worst.path == "hparams['log_rate']"
    assert report.worst.relative_error == pytest.approx(0.01, rel=0.02)
    assert not report.is_ok
    assert report.directions == ()
    assert "no forward mode: a custom_vjp is on the way" in str(report)
    message = r"the derivative by hparams\['log_rate'\]\[\d\] is .*, but differences give .* \+- "
    with pytest.raises(hg.HypergradientError, match=message):
        report.raise_if_wrong()


def test_an_error_that_forward_mode_shares_is_caught_by_differences_alone():
    report = report_of(rate=also_wrong_exp, num_samples=1)
    assert [e.is_wrong for e in report.entries] == [False, True, False, False, False]
    assert not any(e.is_wrong for e in report.directions)


def test_an_error_in_one_number_of_many_is_caught_along_the_direction():
    def gradient(w):
        return (2 * w).at[123].multiply(1.01)

    report = check_gradient(lambda w: jnp.sum(w**2), jnp.ones(1000), gradient=gradient)
    assert not any(e.is_wrong for e in report.entries)
    assert report.worst.name == "params along v"
    with pytest.raises(hg.HypergradientError, match=r"by params along v is .* forward mode gives"):
        report.raise_if_wrong()


def test_truncation_shows_its_bias():
    report = report_of(hg.Truncated(2))
    errors = {(e.path, e.position): e for e in report.entries}
    for t in range(NUM_STEPS):
        entry = errors.get(("hparams['log_rate']", (t,)))
        assert entry is None or entry.is_wrong == (t < NUM_STEPS - 2)
    assert errors["params['b']", ()].gradient == 0
    assert errors["params['b']", ()].relative_error == 1


def adam_report(eps, start):
    """Of three steps of Adam from gradients of 1e-5, what is left of a difference from one."""
    return check_hypergradient(
        lambda params, hparams, valid: jnp.sum(jnp.sin(params)),
        hg.Run(
            hg.adam(lambda params, hparams, batch, key: jnp.sum((params - 1) ** 2) / 2, eps=eps),
            num_steps=3,
        ),
        start,
        {"learning_rate": 1e-2},
        None,
        step=1e-4,
    )


def test_what_rounding_leaves_of_adam_is_told():
    """With an eps below the gradients the first step is a sign, which rounding turns."""
    start = np.array([1 + 1e-5, 1 + 3e-5], np.float32)
    with pytest.warns(RuntimeWarning, match="moves the hypergradient by params by .* Adam with a"):
        report = adam_report(1e-7, start)
    assert report.is_ok  # the derivative is right
    assert report.rounding[0].path == "params"
    assert report.rounding[0].is_ill_conditioned
    assert "\nill-conditioned: rounding of the inputs moves the hyperg" in str(report)
    well = adam_report(1e-3, np.array([2.0, 3.0], np.float32))
    assert well.rounding[0].relative_error < 1e-4
    assert "ill-conditioned" not in str(well)
    with jax.enable_x64(True):
        exact = adam_report(1e-7, start.astype(np.float64))
    assert exact.rounding[0].relative_error < 1e-6 * report.rounding[0].relative_error


def test_every_leaf_is_sampled_without_replacement():
    def squares(tree):
        return jnp.sum(jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)]) ** 2)

    tree = {"one": jnp.float32(1), "some": jnp.ones((2, 3)), "none": jnp.ones(0)}
    report = check_gradient(squares, tree)
    names = [e.name for e in report.entries]
    assert len(set(names)) == len(names) == 1 + 4
    assert {e.path for e in report.entries} == {"params['one']", "params['some']"}
    many = check_gradient(squares, tree, num_samples=20, seed=1)
    assert [e.position for e in many.entries[1:]] == list(np.ndindex(2, 3))


def test_more_numbers_than_a_chunk():
    w = np.linspace(-1, 1, 41)
    report = check_gradient(lambda w: jnp.sum(w**3), w, num_samples=41)
    np.testing.assert_allclose([e.reference for e in report.entries], 3 * w**2, atol=1e-11)
    assert report.raise_if_wrong().worst.relative_error < 1e-9


def test_zero_derivatives():
    report = check_gradient(lambda p: 1.7 + jnp.sum(p["a"] ** 2) + 0 * p["b"], {"a": 0.0, "b": 2.0})
    assert [e.gradient for e in report.entries] == [0, 0]
    assert report.is_ok
    wrong = check_gradient(lambda w: 1.7 + 0 * w, jnp.float32(1), gradient=lambda w: w * 0 + 1e-6)
    assert wrong.worst.is_wrong


@pytest.mark.parametrize("at", [0.0, 1e-7, -1e-7])
def test_a_kink_is_unreliable(at):
    report = check_gradient(lambda w: jnp.sum(jax.nn.relu(w)), jnp.array([at, 0.5]))
    kink, smooth = report.entries
    assert kink.is_unreliable
    assert not kink.is_wrong
    assert not smooth.is_unreliable
    assert report.is_ok
    assert "unreliable" in str(report)
    alone = check_gradient(jax.nn.relu, jnp.float32(at))
    with pytest.raises(hg.HypergradientError, match="no difference was reliable, by params for"):
        alone.raise_if_wrong()


def test_smaller_steps_resolve_what_a_large_one_cannot():
    def near_its_edges(w):
        return jnp.sum(jax.nn.relu(w[0])) + jnp.sqrt(w[1]) + jnp.cos(300 * w[2])

    report = check_gradient(near_its_edges, jnp.array([1e-3, 1e-2, 0.3]))
    assert not any(e.is_unreliable for e in report.entries)
    assert report.is_ok
    assert all(e.step is not None and e.step < 1e-2 for e in report.entries)


def test_the_uncertainty_bounds_the_error_next_to_a_kink():
    """Wherever in the stencil the kink is."""
    kinks = np.linspace(-4.5, 4.5, 901)
    values = np.maximum(np.arange(-4.0, 5.0) - kinks[:, None], 0)
    found = central_differences(values, np.ones(len(kinks)))
    errors = np.abs(found.derivative - (kinks < 0))
    errors[kinks == 0] = 0.5
    assert np.all(errors <= found.uncertainty + 1e-12)


def test_the_difference_is_of_eighth_order():
    x = np.arange(-4, 5)
    for step in (0.5, 0.25):
        found = central_differences(np.exp(x * step)[None], np.array([step]))
        assert abs(found.derivative[0] - 1) == pytest.approx(step**8 / 630, rel=0.2)


def test_an_infinite_gradient_is_wrong():
    report = check_gradient(lambda w: jnp.sum(jnp.sqrt(w)), jnp.array([0.0, 1.0]))
    assert report.worst.gradient == np.inf
    assert report.worst.is_wrong
    assert not report.is_ok


def test_a_run_in_trouble_is_not_ok():
    report = report_of(hparams=HPARAMS | {"log_rate": jnp.full(NUM_STEPS, 300.0)}, num_samples=1)
    assert report.trouble is not None
    assert "trouble: the training became infinite" in str(report)
    with pytest.raises(hg.HypergradientError, match="the training became infinite or NaN"):
        report.raise_if_wrong()


def test_hand_written_gradients_and_arguments():
    logits, labels = jnp.array([[0.1, -0.3, 0.2]]), jnp.array([2])

    def gradient(logits, labels):
        return jax.nn.softmax(logits) - jax.nn.one_hot(labels, 3)

    report = check_gradient(losses.cross_entropy, logits, labels, gradient=gradient)
    assert report.raise_if_wrong().worst.relative_error < 1e-9


def test_the_report_is_a_table():
    lines = str(check_gradient(lambda p: jnp.sum(p["w"] ** 2), {"w": jnp.array([2.0])})).split("\n")
    assert lines[0].split() == ["derivative", "by", "gradient", "reference", "+-", "error", "step"]
    assert lines[1].startswith("params['w'][0]")
    assert lines[1].endswith("ok")
    assert lines[-1] == "1 entries, 0 wrong, 0 unreliable"
    assert lines[1].index("ok") == lines[2].index("ok")


def test_float64_does_not_leak():
    check_gradient(jnp.sum, jnp.ones(2))
    assert jnp.asarray(0.1).dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples is 0; it must be an int of at least 1"),
        ({"num_samples": True}, ValueError, "num_samples is True"),
        ({"seed": -1}, ValueError, "seed is -1; it must be an int of at least 0"),
        ({"step": 0.0}, ValueError, "step is 0.0; it must be a positive number"),
        ({"tolerance": np.nan}, ValueError, "tolerance is nan; it must be a positive number"),
        ({"params": {"w": jnp.arange(3)}}, TypeError, r"params\['w'\] has dtype int"),
        ({"hparams": {"a": "b"}}, TypeError, r"hparams\['a'\] is 'b', not an array of floats"),
        ({"data": "text"}, TypeError, "data is 'text', not an array; bind it"),
        ({"adjoint": hg.Direct}, TypeError, "adjoint is <class"),
        ({"num_steps": 0}, ValueError, "num_steps is 0"),
        (
            {"objective": lambda params, hparams, valid: params["w"]},
            ValueError,
            "objective returned float64 of shape",
        ),
        (
            {"transition": hg.sgd(loss), "adjoint": hg.Reversible()},
            ValueError,
            "needs an update rule that can be run backwards",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        report_of(**changes)


def test_losses_and_gradients_that_do_not_fit_are_refused():
    w = jnp.ones(3)
    with pytest.raises(ValueError, match=r"loss returned .*\(3,\).*; it must return one floating"):
        check_gradient(lambda w: w, w)
    with pytest.raises(ValueError, match=r"gradient returned a tree of shapes \(\); params has"):
        check_gradient(jnp.sum, w, gradient=lambda w: 1.0)
    with pytest.raises(TypeError, match=r"args\[1\] is 'mean', not an array"):
        check_gradient(lambda w, x, kind: jnp.sum(w), w, 1.0, "mean")
    with pytest.raises(TypeError, match="cannot run inside jit"):
        jax.jit(lambda w: check_gradient(jnp.sum, w).worst.gradient)(w)


@pytest.mark.parametrize(
    ("loss", "at"),
    [
        (lambda w: jnp.sum(jnp.sin(w.astype(jnp.float32))) + 100.0, [0.3, 0.5]),
        (lambda w: jnp.sum((w.astype(jnp.bfloat16) ** 2).astype(jnp.float32)), [0.3, 0.52]),
        (lambda w: jnp.sum(jnp.sin(200 * jnp.pi * w) + w), [0.3, 0.5]),
        (lambda w: jnp.sum(jnp.sin(jnp.deg2rad(w))), [36_000.0, 90_000.0]),
        (lambda w: jnp.sum(jnp.tanh(w - 1e6)), [1e6 + 0.3]),
    ],
    ids=["float32", "bfloat16", "a period a step", "large numbers", "a narrow feature"],
)
def test_what_differences_cannot_see_is_not_called_wrong(loss, at):
    report = hg.check_gradient(loss, jnp.asarray(at))
    assert not any(entry.is_wrong for entry in (*report.entries, *report.directions))


@jax.custom_vjp
def tripled(x):
    return x


tripled.defvjp(lambda x: (x, None), lambda _, bar: (3.0 * bar,))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_inside_a_function_passes_no_error(dtype):
    """A derivative three times too large, next to which bfloat16's differences are all noise."""

    def mixed(w):
        inputs, weights = INPUTS.astype(dtype), w.astype(dtype)
        return tripled(jnp.mean((inputs @ weights).astype(jnp.float32) ** 2))

    report = hg.check_gradient(mixed, START["w"])
    assert not report.is_ok
    assert all(entry.is_wrong or entry.is_unreliable for entry in report.entries)
    assert all(abs(entry.relative_error - 2 / 3) < 0.35 for entry in report.entries)
    if dtype == "float32":
        assert all(entry.is_wrong for entry in report.entries)


def test_right_derivatives_in_half_precision_are_not_vouched_for():
    def half(w):
        return jnp.mean((INPUTS.astype("bfloat16") @ w.astype("bfloat16")).astype("float32") ** 2)

    report = hg.check_gradient(half, START["w"])
    assert not any(entry.is_wrong for entry in (*report.entries, *report.directions))
    with pytest.raises(hg.HypergradientError, match="floats with an epsilon of 8e-03: leave out"):
        report.raise_if_wrong()

"""What does not fit together is refused before any step, by a sentence that names it."""

import functools
import inspect
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.data import minibatches, shuffled, with_replacement
from tests.shared.runs import run_with

ADJOINTS = [hg.Direct(), hg.Checkpointed(), hg.Checkpointed(branching=2), hg.Reversible()]
HPARAMS = {"learning_rate": 0.1, "momentum": 0.9}
START = {"w": jnp.ones(3), "b": jnp.float32(0.5)}


def loss(params, hparams, batch, key):
    return jnp.sum((params["w"] - batch) ** 2) + params["b"] ** 2


def called(function, changes):
    given = {
        "transition": hg.momentum(loss),
        "params": START,
        "hparams": HPARAMS,
        "data": jnp.zeros(3),
        "num_steps": 4,
    } | changes
    return run_with(function, given.pop("transition"), **given)


def unroll(**changes):
    return called(hg.unroll, changes)


def refused(error, match, **changes):
    """Raised by `unroll` and by `vjp`, if not by `Run`."""
    for function in (hg.unroll, hg.vjp):
        with pytest.raises(error, match=match):
            called(function, changes)


def test_functions_that_functools_wraps_take_what_they_take_themselves():
    def without_key(params, hparams, batch):
        return loss(params, hparams, batch, None)

    @functools.wraps(without_key)
    def wrapped(params, hparams, batch, key):
        return without_key(params, hparams, batch)

    @functools.wraps(loss)
    def narrow(params, hparams):
        return loss(params, hparams, 0.0, None)

    first = functools.partial(lambda scale, *args: scale * loss(*args), 2.0)
    for fits in (wrapped, jax.jit(wrapped), functools.update_wrapper(first, without_key)):
        unroll(transition=hg.momentum(fits))
    wrong: Any
    for wrong in (narrow, jax.jit(narrow)):
        with pytest.raises(TypeError, match=r"loss takes \(params, hparams\), but is called as"):
            hg.momentum(wrong)


@pytest.mark.parametrize(
    ("num_steps", "error", "match"),
    [
        (0, ValueError, "num_steps is 0; a run has at least one step"),
        (-3, ValueError, "num_steps is -3"),
        (4.0, TypeError, r"num_steps is 4.0; it must be an int"),
        (True, TypeError, "num_steps is True"),
        (None, TypeError, "num_steps is None"),
    ],
)
def test_num_steps(num_steps, error, match):
    refused(error, match, num_steps=num_steps)


def test_traced_num_steps():
    with pytest.raises(TypeError, match=r"num_steps is traced; .* static argument of jit"):
        jax.jit(lambda n: unroll(num_steps=n).params)(4)


def test_numpy_integers_are_integers():
    assert unroll(num_steps=np.int64(2)).params["w"].shape == (3,)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: hg.EarlyStopping(patience=n),
        lambda n: hg.Checkpoints("folder", every=n, keep=n),
        lambda n: hg.Records("folder", every=n, keep=n, figures_every=n),
        lambda n: hg.Skip(n),
        lambda n: minibatches(n),
        lambda n: shuffled(n, seed=n),
        lambda n: with_replacement(n),
        lambda n: hg.online.periods(minibatches(n), minibatches(n), every=n),
        lambda n: hg.Checkpointed(branching=n),
        lambda n: hg.Truncated(n),
        lambda n: hg.Waypoints(n),
    ],
    ids=lambda make: inspect.getsource(make).strip()[10:22],
)
def test_settings_of_numpy_integers_are_those_of_python_s(make):
    """Printed alike too: what is printed tells one run's checkpoints from another's."""
    given, plain = make(np.int64(2)), make(2)
    assert given == plain
    assert hash(given) == hash(plain)
    if not isinstance(plain, hg.Adjoint):
        assert repr(given) == repr(plain)


def test_params():
    refused(ValueError, "params is an empty tree; there is nothing to train", params={})
    wrong = START | {"b": jnp.int32(1)}
    refused(TypeError, r"params\['b'\] has dtype int32, .*; convert it to float32", params=wrong)
    wrong = START | {"b": "no"}
    refused(TypeError, r"params\['b'\] is 'no', not an array of floats", params=wrong)


@pytest.mark.parametrize(
    ("momentum", "match"),
    [
        (1, r"hparams\['momentum'\] has dtype int32, .*; write 1.0 for 1"),
        (jnp.ones(3, bool), r"hparams\['momentum'\] has dtype bool"),
        (jnp.complex64(1), r"hparams\['momentum'\] has dtype complex64"),
        (jnp.ones(2, jnp.float8_e4m3fn), r"hparams\['momentum'\] has dtype float8.*bfloat16 or w"),
        ("sgd", r"hparams\['momentum'\] is 'sgd', not an array of floats; keep such settings out"),
    ],
)
def test_hparams(momentum, match):
    refused(TypeError, match, hparams=HPARAMS | {"momentum": momentum})


def test_a_missing_hyperparameter():
    refused(ValueError, r"hparams has no 'momentum' \(it has", hparams={"learning_rate": 0.1})
    refused(ValueError, "hparams has no 'momentum'", hparams=0.1)


@pytest.mark.parametrize(
    ("axes", "match"),
    [
        (1, r"hparams_axes has 1 for hparams\['learning_rate'\]; only 0"),
        (-1, "hparams_axes has -1"),
        (False, "hparams_axes has False"),
        (0.5, "hparams_axes has 0.5"),
        ({"learning_rate": 0}, r"is not a tree prefix .*: it has no entry for hparams\['momentum"),
        (
            {"learning_rate": 0, "momentum": None, "l2": None},
            r"has an entry for hparams\['l2'\], w",
        ),
        ([0, None], "is not a tree prefix of hparams: it has a list where hparams is a dict"),
        ({"learning_rate": [0], "momentum": 0}, r"a list where hparams\['learning_rate'\] is one"),
    ],
)
def test_hparams_axes(axes, match):
    refused(ValueError, match, hparams_axes=axes)


@pytest.mark.parametrize("rate", [0.1, jnp.ones(5), jnp.ones((3, 4))])
def test_schedules_of_another_length(rate):
    refused(
        ValueError,
        r"hparams\['learning_rate'\] is a schedule of shape .*, but num_steps is 4; its leading",
        hparams={"learning_rate": rate, "momentum": 0.9},
        hparams_axes={"learning_rate": 0, "momentum": None},
    )


@pytest.mark.parametrize(
    ("rate", "match"),
    [
        (
            {"w": 0.1},
            r"learning_rate is not a prefix of the parameters' .* entry for params\['b'\]",
        ),
        ({"w": jnp.ones(2), "b": 0.1}, r"learning_rate has shape \(2,\) where .* shape \(3,\)"),
        (jnp.ones(3), r"learning_rate has shape \(3,\) where a parameter has shape \(\)"),
    ],
)
def test_values_per_tensor_that_do_not_fit(rate, match):
    refused(ValueError, match, hparams=HPARAMS | {"learning_rate": rate})


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda p, h, b, k: p["w"], r"loss returned float32 of shape \(3,\); it must return one"),
        (lambda p, h, b, k: 1, r"loss returned int32 of shape \(\)"),
    ],
)
def test_losses_that_are_no_float_scalar(adjoint, wrong, match):
    refused(ValueError, match, transition=hg.momentum(wrong), adjoint=adjoint)


def test_rules_that_cannot_be_reversed():
    for make in (hg.sgd, hg.rmsprop, hg.nesterov):
        refused(
            ValueError,
            r"Reversible\(\) needs an update rule that can be run backwards, .* use Checkpointed",
            transition=make(loss),
            adjoint=hg.Reversible(),
        )


@pytest.mark.parametrize("adjoint", [hg.Direct, hg.Reversible, "direct", None])
def test_adjoints_that_are_none(adjoint):
    refused(TypeError, "adjoint is .*; it must be an object such as Direct", adjoint=adjoint)


def test_a_transition_that_is_none():
    refused(TypeError, r"transition is .*; build one with hg.momentum", transition=loss)


@pytest.mark.parametrize("bound", [0, 0.0, -0.5, 1.5, float("nan"), {"velocity": 2.0}])
def test_smallest_decay_out_of_range(bound):
    with pytest.raises(ValueError, match=r"smallest_decay is .*; it must be in \(0, 1\]"):
        hg.Reversible(smallest_decay=bound)


@pytest.mark.parametrize("branching", [1, 0, -2, 2.5])
def test_branching_out_of_range(branching):
    with pytest.raises(
        ValueError, match=f"branching is {branching}; it must be an int of at least 2"
    ):
        hg.Checkpointed(branching=branching)


@pytest.mark.parametrize("momentum", [0.0, 0.007, -0.5, 1.1, float("nan"), {"w": 0.9, "b": 1.5}])
def test_decays_out_of_range(momentum):
    refused(
        ValueError,
        r"the decay of 'velocity' is .*; Reversible\(\) needs decays in \[2\*\*-7, 1\]",
        hparams=HPARAMS | {"momentum": momentum},
        adjoint=hg.Reversible(),
    )


def test_one_decay_of_a_schedule_out_of_range():
    refused(
        ValueError,
        "the decay of 'velocity' is 1.25;",
        hparams=HPARAMS | {"momentum": jnp.asarray([0.5, 0.9, 1.25, 0.9])},
        hparams_axes={"learning_rate": None, "momentum": 0},
        adjoint=hg.Reversible(),
    )


def test_steps_that_change_their_state():
    def init(params, hparams):
        return params

    def more(state, hparams, batch, key):
        return state | {"c": state["b"]}

    def wider(state, hparams, batch, key):
        return state | {"b": jnp.ones(2)}

    structure = hg.Transition(init, more, lambda state: state)
    refused(ValueError, "transition.step returned a state of structure", transition=structure)
    shape = hg.Transition(init, wider, lambda state: state)
    refused(
        ValueError,
        r"transition.step changes state\['b'\] from float32\(\) to float32\(2,\)",
        transition=shape,
    )


def test_traces_of_integers():
    refused(
        ValueError,
        r"record returned int32 at \['n'\]; .* convert with astype",
        record=lambda state, data: {"n": state.count},
    )
    refused(ValueError, "int32 at its root", record=lambda state, data: state.count)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_differentiating_the_data_is_refused(adjoint):
    def end(data):
        return jnp.sum(unroll(data=data, adjoint=adjoint).params["w"])

    def pulled(data):
        run = hg.Run(hg.momentum(loss), num_steps=4, adjoint=adjoint)
        return jnp.sum(hg.vjp(run, START, HPARAMS, data)[0].params["w"])

    for function in (end, pulled):
        for transformed in (
            jax.grad(function),
            jax.jit(jax.grad(function)),
            lambda x, f=function: jax.jvp(f, (x,), (x,)),
        ):
            with pytest.raises(ValueError, match=r"data is being differentiated, .* into hparams"):
                transformed(jnp.ones(3))


def test_data_are_learned_through_the_hyperparameters():
    """Distillation: the gradient of a data set, as every adjoint gives it."""

    def distilled_loss(params, hparams, batch, key):
        return loss(params, hparams, hparams["images"][batch], key)

    def end(images, adjoint):
        out = hg.unroll(
            hg.Run(
                hg.momentum(distilled_loss),
                num_steps=4,
                hparams_axes={"learning_rate": None, "momentum": None, "images": None},
                batch_fn=lambda data, t, key: data[t],
                adjoint=adjoint,
            ),
            START,
            HPARAMS | {"images": images},
            jnp.arange(4),
        )
        return jnp.sum(out.params["w"] ** 2)

    images = jax.random.normal(jax.random.key(0), (4, 3))
    found = [jax.grad(end)(images, adjoint) for adjoint in ADJOINTS]
    assert np.all(np.abs(found[0]) > 1e-3)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5)


def square(params, hparams, batch, key):
    return hparams["l2"] * jnp.sum(params**4)


def quartic_end(l2, adjoint):
    hparams = {"learning_rate": 0.05, "momentum": 0.9, "l2": l2}
    run = hg.Run(hg.momentum(square), num_steps=5, adjoint=adjoint)
    return jnp.sum(hg.unroll(run, jnp.ones(2), hparams, None).params)


def pulled_back(l2):
    hparams = {"learning_rate": 0.05, "momentum": 0.9, "l2": l2}
    run = hg.Run(hg.momentum(square), num_steps=5, adjoint=hg.Reversible())
    out, pullback = hg.vjp(run, jnp.ones(2), hparams, None)
    return jnp.sum(out.params) + pullback(jnp.ones(2))[0].hparams["l2"]


@pytest.mark.parametrize(
    "function",
    [
        jax.grad(lambda l2: quartic_end(l2, hg.Reversible())),
        jax.jit(jax.grad(lambda l2: quartic_end(l2, hg.Reversible()))),
        pulled_back,
        lambda l2: (
            hg.value_and_hypergradient(
                lambda params, hparams, data: jnp.sum(params),
                hg.Run(hg.momentum(square), num_steps=5, adjoint=hg.Reversible()),
                jnp.ones(2),
                {"learning_rate": 0.05, "momentum": 0.9, "l2": l2},
                None,
            ).value
        ),
    ],
    ids=["grad of grad", "grad of jit", "vjp", "value_and_hypergradient"],
)
def test_second_derivatives_of_integers(function):
    """Where they would be silently wrong: the integers pass no tangents."""
    for differentiate in (jax.grad, jax.jacfwd):
        with pytest.raises(ValueError, match=r"no further derivatives: .* Checkpointed"):
            differentiate(function)(0.1)
    second = jax.grad(jax.grad(quartic_end))(0.1, hg.Direct())
    other = jax.grad(jax.grad(quartic_end))(0.1, hg.Checkpointed())
    assert float(second) == pytest.approx(float(other), rel=1e-4)


def test_a_loss_that_closes_over_what_is_differentiated():
    def value(l2):
        def loss(params, hparams, batch, key):
            return l2 * jnp.sum(params**2)

        hparams = {"learning_rate": 0.05, "momentum": 0.9}
        run = hg.Run(hg.momentum(loss), num_steps=5, adjoint=hg.Reversible())
        return jnp.sum(hg.vjp(run, jnp.ones(2), hparams, None)[0].params)

    with pytest.raises(ValueError, match=r"no further derivatives.*take jax.grad of hg.unroll"):
        jax.grad(value)(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decays": lambda h, t: {"velocty": 0.9}}, "decays names 'velocty', .* 'velocity'"),
        ({"kick": lambda g, h, t: {"speed": -g}}, r"kick returned \['speed'\]; .* \['velocity'\]"),
        ({"kick": lambda g, h, t: -g}, r"kick returned .*; it must return a dict of"),
        (
            {"kick": lambda g, h, t: {"velocity": 0.0}},
            r"what kick returned for .* shapes \(\), but",
        ),
        (
            {"drift": lambda s, h, t: s},
            r"what drift returned has the shapes {'velocity': \(2,\)}, but params",
        ),
        ({"drift": lambda s, h, t: None}, "what drift returned has the shapes None"),
        ({"decays": lambda h, t: 0.9}, "decays returned 0.9; it must return a dict of decays"),
    ],
)
@pytest.mark.parametrize("adjoint", [hg.Direct(), hg.Reversible()], ids=repr)
def test_names_of_a_rule_of_ones_own(changes, message, adjoint):
    parts = {
        "kick": lambda gradient, hparams, count: {"velocity": -gradient},
        "drift": lambda slots, hparams, count: 0.1 * slots["velocity"],
        "decays": lambda hparams, count: {"velocity": 0.9},
    } | changes
    rule = hg.kick_drift(square, **parts, slots={"velocity": hg.Slot()})
    with pytest.raises(ValueError, match=message):
        hg.unroll(hg.Run(rule, num_steps=3, adjoint=adjoint), jnp.ones(2), {"l2": 0.1}, None)


def test_a_capacity_for_an_unknown_variable():
    with pytest.raises(ValueError, match=r"smallest_decay names 'velocty', .* 'velocity'"):
        quartic_end(0.1, hg.Reversible(smallest_decay={"velocty": 0.9}))


@pytest.mark.parametrize("info", [None, {}, 3.0])
def test_what_can_be_checked(info):
    with pytest.raises(TypeError, match=r"info is a .*; pass what unroll"):
        hg.check(info)


PIECES = {
    "kick": lambda gradient, hparams, count: {"velocity": -gradient},
    "drift": lambda slots, hparams, count: slots["velocity"],
    "decays": lambda hparams, count: {"velocity": 0.9},
    "slots": {"velocity": hg.Slot()},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": {"velocity": hg.Slot}}, "slots has .*; it must be a dict of names and hg.Slot"),
        ({"slots": ["velocity"]}, r"slots has \['velocity'\]; it must be a dict of names"),
        ({"decays": 0.9}, r"decays is 0.9, but is called as decays\(hparams, count\)"),
        ({"drift": lambda slots: slots}, r"drift takes \(slots\), but is called as drift\(slots, "),
        ({"kick": None}, "kick is None, but is called as"),
        ({"couple": 1}, "couple is 1, but is called as"),
        ({"init": lambda params: {}}, r"init takes \(params\), but is called as init"),
    ],
)
def test_pieces_of_a_rule_of_ones_own(changes, message):
    with pytest.raises(TypeError, match=message):
        hg.kick_drift(square, **PIECES | changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_fn": 100}, "batch_fn is 100, but is called as .*; pass hgrad_jax.data.minibatch"),
        ({"batch_fn": lambda data, t: data}, r"batch_fn takes \(data, t\), but is called as"),
        ({"key": 0}, r"key is 0, not one PRNG key; pass jax.random.key\(0\)"),
        ({"key": jnp.zeros(2)}, r"key is float32\[2\], not one PRNG key"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, r"key is key<fry>\[3\], not one PRNG"),
        ({"record": 3}, r"record is 3, but is called as record\(state, data\)"),
        (
            {"record": lambda state, data: state.params if state.count else data},
            r"a step \(loss, batch_fn, record, .*\) asks a traced array for its value, as Python's",
        ),
    ],
)
def test_what_a_run_is_made_from(settings, message):
    rule = hg.sgd(square, learning_rate=0.1)
    with pytest.raises(TypeError, match=message):
        run_with(hg.unroll, rule, jnp.ones(2), {"l2": 0.1}, None, **{"num_steps": 3} | settings)


def test_raw_keys_are_keys():
    hg.unroll(
        hg.Run(hg.sgd(square, learning_rate=0.1), num_steps=1),
        jnp.ones(2),
        {"l2": 0.1},
        None,
        key=jax.random.PRNGKey(0),
    )


@pytest.mark.parametrize("rate", ["0.1", None, lambda hparams: "0.1"], ids=["text", "none", "read"])
def test_rates_that_are_no_numbers(rate):
    with pytest.raises(TypeError, match=r"a hyperparameter of the rule is .*; pass a number"):
        hg.unroll(
            hg.Run(hg.sgd(square, learning_rate=rate), num_steps=1), jnp.ones(2), {"l2": 0.1}, None
        )
    rule = hg.momentum(loss, learning_rate=lambda hparams: {"w": "0.1", "b": 0.1}, momentum=0.9)
    with pytest.raises(TypeError, match=r"learning_rate\['w'\] is '0.1'; it must be a number or"):
        hg.unroll(hg.Run(rule, num_steps=1), START, {"l2": 0.1}, jnp.zeros(3))


def test_a_loss_of_other_arguments():
    wrong: Any = lambda params: jnp.sum(params)  # noqa: E731
    with pytest.raises(
        TypeError, match=r"loss takes \(params\), but is called as loss\(params, hp"
    ):
        hg.adam(wrong)


def test_a_schedule_that_could_as_well_be_a_value_per_number():
    """Twenty weights, twenty steps, and no word on which of them the rates belong to."""
    rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params**2))
    rates = {"learning_rate": jnp.linspace(0.1, 0.2, 20)}
    with pytest.raises(
        ValueError, match=r"\['learning_rate'\] of shape \(20,\) has a row for each of"
    ):
        hg.unroll(hg.Run(rule, num_steps=20), jnp.ones(20), rates, None)
    axes = {"learning_rate": None}
    each = hg.unroll(
        hg.Run(rule, num_steps=20, hparams_axes=axes), jnp.ones(20), rates, None
    ).params
    np.testing.assert_allclose(each, (1 - 2 * rates["learning_rate"]) ** 20, rtol=1e-5)


def test_check_takes_a_hypergradient():
    rule = hg.sgd(lambda params, hparams, batch, key: jnp.sum(params**2))

    def found(rate):
        return hg.value_and_hypergradient(
            lambda params, hparams, data: jnp.sum(params),
            hg.Run(rule, num_steps=3),
            jnp.ones(2),
            {"learning_rate": rate},
            None,
            None,
        )

    fine = found(0.1)
    assert hg.check(fine) is fine
    with pytest.raises(hg.HypergradientError, match="infinite or NaN"):
        hg.check(found(jnp.inf))


RULE, ENDS = hg.momentum(loss), jnp.zeros(3)
LEARNED = {"learned": ("learning_rate",), "make_tx": lambda hparams: optax.sgd(0.1)}


def pulled(params_bar, trace_bar=None):
    run = hg.Run(RULE, num_steps=2, record=lambda state, data: state.params["w"])
    return hg.vjp(run, START, HPARAMS, ENDS)[1](params_bar, trace_bar)


def cubes(params):
    return jnp.sum(params**3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: unroll(data="mnist"), TypeError, "data is 'mnist'; data must be a pytree of arr"),
        (lambda: unroll(data=(ENDS, "a")), TypeError, r"data\[1\] is 'a'; data must be a pytree"),
        (lambda: pulled({"w": ENDS}), ValueError, r"params_bar has the shapes .* like the trained"),
        (lambda: pulled(None), ValueError, "params_bar has the shapes None; it must be like the"),
        (lambda: pulled(START, ENDS), ValueError, r"trace_bar has the shapes \(3,\); .* the trace"),
        (lambda: hg.hvp(cubes, ENDS, START), ValueError, r"direction has the .* like params, \(3"),
        (lambda: hg.hvp(cast(Any, 1), ENDS, ENDS), TypeError, "loss is 1; pass a function that"),
        (lambda: hg.mixed_product(cubes, ENDS, 0.1, 0.1), ValueError, r"direction .* shapes \(\)"),
        (lambda: hg.average(cast(Any, loss)), TypeError, "transition is .*; build one with hg.mom"),
        (lambda: hg.polyak_average(cast(Any, loss)), TypeError, "transition is .*; build one with"),
        (
            lambda: hg.project_to_box(cast(Any, loss), lower=0.0, upper=1.0),
            TypeError,
            "transition is .*; build one with",
        ),
        (
            lambda: hg.modified(cast(Any, None)),
            TypeError,
            "provider is None, but is called as prov",
        ),
        (lambda: hg.check_gradient(cast(Any, None), ENDS), TypeError, "loss is None; pass a func"),
        (
            lambda: hg.cotangent_norms(
                cast(Any, 1), hg.Run(RULE, num_steps=2), START, HPARAMS, ENDS
            ),
            TypeError,
            "objective is 1, but is called as objective",
        ),
        (
            lambda: hg.over_devices(lambda x: x if x > 0 else -x)(ENDS),
            TypeError,
            "function asks a traced array for its value",
        ),
        (
            lambda: hg.sweep(lambda h, key, data: h["a"] if h["a"] > 0 else 0.0, [{"a": 1.0}]),
            TypeError,
            "run asks a traced array for its value",
        ),
        (
            lambda: hg.sweep(lambda h, key, data: h["a"], [{"a": 1.0}], "mnist"),
            TypeError,
            "data is 'mnist'; data must be a pytree of arrays",
        ),
        (
            lambda: hg.online.t1_t2(RULE, loss, bounds=cast(Any, 5), **LEARNED),
            TypeError,
            "bounds is 5; it must be a dict of pairs",
        ),
    ],
)
def test_other_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_keys_are_data():
    hparams = HPARAMS | {"l2": 0.1}
    data = (ENDS, jax.random.key(0))
    out = hg.unroll(hg.Run(hg.momentum(square), num_steps=2), ENDS, hparams, data)
    assert out.params.shape == (3,)

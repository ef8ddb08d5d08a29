"""Faults on the way back and in user functions: refused, flagged or harmless, never silent."""

# pyright: reportAttributeAccessIssue=false

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hgrad_jax as hg
from hgrad_jax.adjoints import reversible
from hgrad_jax.bits.integers import in_64_bits
from tests.campaign import faults
from tests.campaign.campaign_figures import FLAGGED, REFUSED, RIGHT, SILENT
from tests.campaign.faults import HPARAMS, RULES, SOURCES, X, Y

pytestmark = pytest.mark.slow


def rule_of(name, loss=faults.loss, **changes):
    return RULES[name](loss, **(SOURCES | changes))


def settle(record_property, result, *expected):
    """Notes a fault's end, and asserts that it is one of the expected."""
    record_property("fault", result)
    assert result != SILENT
    assert not expected or result in expected


# --- The way back: what was kept for it is changed between the two passes.


@in_64_bits
def flipped(integers, bit):
    """The first number's bit."""
    first, *rest = jax.tree.leaves(integers)
    is_first = jnp.arange(first.shape[0]) == 0
    mask = np.asarray(1, first.dtype) << np.asarray(bit, first.dtype)
    first = jnp.where(is_first, first ^ mask, first)
    return jax.tree.unflatten(jax.tree.structure(integers), [first, *rest])


def in_end(kind, choose, change):
    """A tamper that changes one of the end's values or stores."""

    def tamper(residuals):
        part = dict(getattr(residuals.end, kind))
        name = choose(list(part))
        part[name] = change(part[name])
        return residuals._replace(end=residuals.end._replace(**{kind: part}))

    return tamper


def of_params(names):
    return "params"


def of_slot(names):
    return next(name for name in names if name != "params")


def first_name(names):
    return names[0]


def row_flipped(store):
    row = store.rows[:1] ^ np.asarray(1, store.rows.dtype)
    return store._replace(rows=jnp.concatenate([row, store.rows[1:]]))


def integer_flipped(store):
    return store._replace(integer=flipped(store.integer, 3))


def emptied(store):
    return store._replace(rows=jnp.zeros_like(store.rows))


def one_number(x):
    return x.at[(0,) * x.ndim].multiply(1 + 1e-3)


def with_inputs(residuals, **changes):
    return residuals._replace(inputs=residuals.inputs._replace(**changes))


def other_constant(place, factor):
    """HPARAMS in order: decay, l2, rate."""

    def tamper(residuals):
        constants = list(residuals.inputs.constants)
        constants[place] = constants[place] * factor
        return with_inputs(residuals, constants=tuple(constants))

    return tamper


def other_data(residuals):
    x, y = residuals.inputs.data
    return with_inputs(residuals, data=(one_number(x), y))


def swapped_examples(residuals):
    x, y = residuals.inputs.data
    return with_inputs(residuals, data=(x[::-1], y))


def other_start(residuals):
    params = residuals.start.params
    start = residuals.start._replace(params=params | {"w": one_number(params["w"])})
    return residuals._replace(start=start)


def later_spills(residuals):
    offsets = {name: jnp.roll(rows, 1).at[0].set(0) for name, rows in residuals.offsets.items()}
    return residuals._replace(offsets=offsets)


TAMPERS = {
    "last bit of a position": in_end("values", of_params, lambda v: flipped(v, 0)),
    "bit 40 of a position": in_end("values", of_params, lambda v: flipped(v, 40)),
    "sign of a position": in_end("values", of_params, lambda v: flipped(v, 63)),
    "last bit of a slot": in_end("values", of_slot, lambda v: flipped(v, 0)),
    "bit 30 of a slot": in_end("values", of_slot, lambda v: flipped(v, 30)),
    "bit of the store": in_end("stores", first_name, integer_flipped),
    "bit of a spilled row": in_end("stores", first_name, row_flipped),
    "store emptied": in_end("stores", first_name, emptied),
    "spills a step late": later_spills,
    "wrong base": other_constant(0, 1 + 1e-4),
    "other loss": other_constant(1, 1 + 1e-4),
    "other rate": other_constant(2, 1 + 1e-4),
    "other data": other_data,
    "examples swapped": swapped_examples,
    "other start": other_start,
}


def spread_out(names, others):
    """Every name with some of the others in turn."""
    names, others = list(names), list(others)
    return [(name, others[i % len(others)]) for i, name in enumerate(names)]


ON_THE_WAY = [
    *((tamper, "heavy_ball") for tamper in TAMPERS),
    *spread_out(TAMPERS, [name for name in RULES if name != "heavy_ball"]),
]


@pytest.mark.parametrize(("tamper", "rule"), ON_THE_WAY)
def test_on_the_way_back(tamper, rule, monkeypatch, record_property):
    honest = reversible.run_backward

    def run_backward(trajectory, residuals, *args, **settings):
        return honest(trajectory, TAMPERS[tamper](residuals), *args, **settings)

    monkeypatch.setattr(reversible, "run_backward", run_backward)

    # A store of two variables spills seldom: the first is the one that a tamper changes.
    @jax.jit
    def attempt(hparams):
        return faults.run(rule_of(rule), hg.Reversible(), hparams)

    settle(record_property, faults.outcome(lambda: attempt(HPARAMS)), FLAGGED)


# --- Impure functions: what they return differs from trace to trace.


def planted(number, site, rule_name, adjoint, hparams):
    """Trains with `number()`, new at every call, in one of the user's functions."""

    def at(name):
        return number() if name == site else 1.0

    def loss(params, hparams, batch, key):
        return at("loss") * faults.loss(params, hparams, batch, key)

    def penalized(params, hparams, batch, key):
        return faults.loss(params, hparams | {"l2": at("penalty") * hparams["l2"]}, batch, key)

    def batch_fn(data, t, key):
        x, y = jax.tree.map(lambda z: jnp.roll(z, t, axis=0)[:4], data)
        return at("batch_fn") * x, y

    def modifier(gradient, params, hparams):
        return jax.tree.map(lambda g: at("modifier") * g, gradient)

    def provider(loss):
        def gradient(params, hparams, batch, key):
            factor = at("gradient")
            return jax.tree.map(lambda g: factor * g, jax.grad(loss)(params, hparams, batch, key))

        return gradient

    def rate(hparams):
        return hparams["rate"] * at("rate")

    def decay(hparams):
        return hparams["decay"] * at("decay")

    def record(state, data):
        return at("record") * jnp.sum(state.params["w"] ** 2)

    changes = {}
    if site == "rate":
        changes["learning_rate"] = rate
    if site == "decay":
        changes["momentum"] = decay
    if site == "gradient":
        changes["gradient"] = provider
    if site == "modifier":
        changes["gradient"] = hg.modified(hg.backpropagation, modifier)
    rule = rule_of(
        rule_name, {"loss": loss, "penalty": penalized}.get(site, faults.loss), **changes
    )
    if site == "init":
        first = rule.init

        def init(params, hparams):
            state = first(params, hparams)
            factor = at("init")
            slots = jax.tree.map(lambda s: s + 0.1 * factor, state.slots)
            return state._replace(slots=slots)

        rule = rule._replace(init=init)
    if site == "params":
        read = rule.params

        def params_of(state):
            factor = at("params")
            return jax.tree.map(lambda x: factor * x, read(state))

        rule = rule._replace(params=params_of)
    settings = {"num_steps": 8, "batch_fn": batch_fn}
    if site == "record":
        settings["record"] = record
    if site == "objective":

        def objective(params, hparams, data):
            total = sum(jnp.sum(p) for p in jax.tree.leaves(params))
            return jnp.asarray(at("objective") * total)

        run = hg.Run(rule, **settings, adjoint=adjoint)
        found = hg.value_and_hypergradient(objective, run, faults.PARAMS, hparams, (X, Y))
        return faults.Found(found.value, found.hparams, found.info)
    return faults.run(rule, adjoint, hparams, **settings)


SITES = {
    "loss": ("heavy_ball", "adam", "rmsprop_momentum", "momentum", "average"),
    "penalty": ("momentum", "classical_momentum", "adam", "heavy_ball", "adamw"),
    "batch_fn": ("adamw", "heavy_ball", "classical_momentum", "rmsprop_momentum", "momentum"),
    # Rules that read it once a step: else one step has several numbers.
    "rate": ("heavy_ball", "adam", "momentum", "rmsprop_momentum", "classical_momentum"),
    "decay": ("heavy_ball", "classical_momentum", "average", "rmsprop_momentum", "heavy_ball"),
    "gradient": ("momentum", "heavy_ball", "adam", "adamw", "average"),
    "init": ("heavy_ball", "momentum", "classical_momentum", "heavy_ball", "momentum"),
    "params": ("heavy_ball", "adam", "momentum", "average", "rmsprop_momentum"),
    "record": ("adam", "momentum", "heavy_ball", "classical_momentum", "average"),
    "objective": ("momentum", "adam", "rmsprop_momentum", "heavy_ball", "adamw"),
}
ADJOINTS = {
    "Reversible": hg.Reversible(),
    "Apart": hg.Reversible(share_gradient=False),
    "Checkpointed": hg.Checkpointed(),
    "ForwardMode": hg.ForwardMode(),
    "Waypoints": hg.Waypoints(4, undone_steps=None),
}
IMPURE = [
    (site, adjoint, rules[i], faults.UNITS[(i + j) % len(faults.UNITS)])
    for j, (site, rules) in enumerate(SITES.items())
    for i, adjoint in enumerate(ADJOINTS)
]
MOST_TRACES = 64


@functools.cache
def pure(site, rule_name):
    """Returns `numbers [64] -> Found` of the same training with each number throughout."""

    def one(number):
        found = planted(lambda: number, site, rule_name, hg.Direct(), HPARAMS)
        return found._replace(info=None)

    return jax.jit(jax.vmap(one))


@functools.cache
def largest(site, rule_name):
    """Returns the largest norm of each leaf of the derivatives, over the numbers drawn."""
    bars = pure(site, rule_name)(np.linspace(0.8, 1.2, MOST_TRACES, dtype=np.float32)).hparams_bar
    each = [faults.norms(jax.tree.map(lambda x, i=i: x[i], bars)) for i in range(MOST_TRACES)]
    return np.max(each, axis=0).tolist()


@pytest.mark.parametrize(("site", "adjoint", "rule", "kind"), IMPURE)
def test_impure_functions(site, adjoint, rule, kind, record_property):
    """Right is what one of the numbers drawn gives, if it is the same in the whole training.

    A derivative may cross zero between the numbers (Adam's by its b1 does at a rate of 1.13), where
    rounding is all of it: errors are relative to the derivative's largest size.
    """
    draw, numbers = faults.units(kind), []

    def number():
        numbers.append(0.8 + 0.4 * draw())
        return numbers[-1]

    def is_right(found):
        assert len(numbers) <= MOST_TRACES
        padded = np.resize(np.asarray(numbers, np.float32), MOST_TRACES)
        wanted = pure(site, rule)(padded)
        rows = [jax.tree.map(lambda x: x[i], wanted) for i in range(len(numbers))]  # noqa: B023
        rtol = 1e-2 if adjoint == "Waypoints" else 1e-4
        bars = largest(site, rule)
        return any(
            faults.is_close(found.params, row.params, 1e-4)
            and faults.is_close(found.hparams_bar, row.hparams_bar, rtol, bars)
            for row in rows
        )

    attempt = jax.jit(lambda h: planted(number, site, rule, ADJOINTS[adjoint], h))
    result = faults.outcome(lambda: attempt(HPARAMS), is_right)
    assert numbers, "the site was never traced"
    settle(record_property, result)


# --- Trainings that cannot be run, or not run backwards, as they are.


def attempt(rule, adjoint, hparams=HPARAMS, **settings):
    return jax.jit(lambda h: faults.run(rule, adjoint, h, **settings))(hparams)


def as_direct(rule, hparams=HPARAMS, **settings):
    """Whether what was found is what `Direct()` finds."""
    return lambda found: faults.is_close(
        found.hparams_bar, attempt(rule, hg.Direct(), hparams, **settings).hparams_bar, 1e-3
    )


def at_step(bad):
    """Batches whose targets are bad in step 9."""
    return lambda data, t, key: (data[0], jnp.where(t == 9, bad, data[1]))


def root_at_zero(params, hparams, batch, key):
    """Its gradient is finite at zero, where its second derivative is infinite times zero."""
    w = params["w"] - faults.PARAMS["w"]
    return jnp.sum(jnp.where(w > 0, w**1.5, 0)) + hparams["l2"] * jnp.sum(params["w"])


def norm_at_zero(params, hparams, batch, key):
    return jnp.linalg.norm(params["w"] - faults.PARAMS["w"]) + hparams["l2"] * params["b"] ** 2


def logarithm(params, hparams, batch, key):
    """NaN throughout, with finite gradients: of -5 and never near zero, its singularity."""
    return jnp.log(jnp.sum(params["w"]) - 50 * hparams["l2"]) + params["b"] ** 2


def ascent(params, hparams, batch, key):
    return -jnp.exp(jnp.sum(params["w"] ** 2) + params["b"] ** 2) / hparams["l2"]


@jax.custom_jvp
def scaled(x, s):
    return x


scaled.defjvp(lambda primals, tangents: (primals[0], primals[1] * tangents[0]))


@jax.custom_vjp
def reversed_gradient(x, s):
    return x


reversed_gradient.defvjp(lambda x, s: (x, s), lambda s, bar: (s * bar, jnp.zeros_like(s)))


@jax.custom_jvp
def score(x, s):
    """A value of zero with a derivative: an estimator's surrogate."""
    return 0.0 * x


score.defjvp(
    lambda primals, tangents: (0.0 * primals[0], jnp.cos(primals[0] * primals[1]) * tangents[0])
)


def rounded(x, s):
    return x + jax.lax.stop_gradient(jnp.round(8 * x) / 8 - x) * s


def through(function):
    def loss(params, hparams, batch, key):
        params = params | {"w": function(params["w"], hparams["l2"])}
        return faults.loss(params, hparams, batch, key) + jnp.sum(
            function(params["w"], hparams["l2"])
        )

    return loss


NO_FUNCTIONS = {
    "scaled": scaled,
    "reversed": reversed_gradient,
    "score": score,
    "straight through": rounded,
}


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("scaled", "adam"),
        ("scaled", "heavy_ball"),
        ("reversed", "momentum"),
        ("score", "heavy_ball"),
        ("score", "rmsprop_momentum"),
        ("straight through", "classical_momentum"),
    ],
)
def test_rules_that_are_not_the_derivative(name, rule, adjoint, record_property):
    built = rule_of(rule, through(NO_FUNCTIONS[name]))
    run = {"num_steps": 8}
    result = faults.outcome(
        lambda: attempt(built, ADJOINTS[adjoint], **run), as_direct(built, **run)
    )
    settle(record_property, result, RIGHT, REFUSED)


DAMAGED = {
    "NaN in a batch": (faults.loss, {"batch_fn": at_step(jnp.nan)}, {}),
    "infinity in a batch": (faults.loss, {"batch_fn": at_step(jnp.inf)}, {}),
    "logarithm of a negative number": (logarithm, {}, {}),
    "norm at zero": (norm_at_zero, {}, {}),
    "explosion": (ascent, {}, {"rate": 3.0}),
    "decay of zero": (faults.loss, {}, {"decay": 0.0}),
    "negative decay": (faults.loss, {}, {"decay": -0.5}),
    "decay above one": (faults.loss, {}, {"decay": 1.2}),
    "decay of NaN": (faults.loss, {}, {"decay": jnp.nan}),
    "rate of NaN": (faults.loss, {}, {"rate": jnp.nan}),
    "second derivative of NaN": (root_at_zero, {}, {}),
}
BOTH = ("heavy_ball", "adam")


@pytest.mark.parametrize("rule", BOTH)
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_trainings(name, rule, record_property):
    loss, settings, changes = DAMAGED[name]
    hparams = HPARAMS | {key: jnp.float32(value) for key, value in changes.items()}
    built = rule_of(rule, loss)
    result = faults.outcome(
        lambda: attempt(built, hg.Reversible(), hparams, **settings),
        as_direct(built, hparams, **settings),
    )
    settle(record_property, result, REFUSED, FLAGGED, RIGHT)


@pytest.mark.parametrize(
    "rule", ["heavy_ball", "momentum", "classical_momentum", "adam", "average"]
)
def test_stores_that_are_too_small(rule, record_property):
    built = rule_of(rule)
    run = {"num_steps": 60}
    small = hg.Reversible(smallest_decay=0.999)
    settle(record_property, faults.outcome(lambda: attempt(built, small, **run)), FLAGGED)


def optax_sgd(loss, *, learning_rate, momentum):
    return hg.from_optax(lambda h: optax.sgd(h["rate"], momentum=h["decay"]), loss)


def sgd(loss, *, learning_rate, momentum):
    return hg.sgd(loss, learning_rate=learning_rate)


def in_a_box(loss, **sources):
    return hg.project_to_box(hg.heavy_ball(loss, **sources), lower=-1.0, upper=1.0)


@pytest.mark.parametrize(
    "make", [optax_sgd, sgd, hg.nesterov, in_a_box], ids=lambda make: make.__name__
)
def test_rules_that_cannot_be_undone(make, record_property):
    built = make(faults.loss, **SOURCES)
    result = faults.outcome(lambda: attempt(built, hg.Reversible()))
    settle(record_property, result, REFUSED)


# --- Functions that are impure when they run.


class Host:
    """Numbers from the host that differ from call to call, whatever was asked for."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def number(self, t):
        return np.float32(0.5 + self.random.random())


def host_batches(host):
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    def batch_fn(data, t, key):
        factor = jax.pure_callback(host.number, shape, t)
        return factor * data[0], data[1]

    return batch_fn


def host_loss(host):
    shape = jax.ShapeDtypeStruct((), jnp.float32)

    def loss(params, hparams, batch, key):
        # Of anything, so that it is not called with the parameters, of which it has no derivative.
        factor = jax.pure_callback(host.number, shape, jnp.float32(0))
        return factor * faults.loss(params, hparams, batch, key)

    return loss


CHECKED = {"Reversible": hg.Reversible(), "Apart": hg.Reversible(share_gradient=False)}
"""Adjoints that compare what they did twice.

Nothing tells in the others, where the second number is as good as the first: `Checkpointed()`
computes states again, and `Waypoints` undoes them, that have been thrown away by then; `Direct()`
and `ForwardMode()` call every function once a step, and are right about the training that was.
"""


@pytest.mark.parametrize("adjoint", CHECKED)
@pytest.mark.parametrize("rule", RULES)
def test_batches_that_the_host_makes_anew(rule, adjoint, record_property):
    built, batch_fn = rule_of(rule), host_batches(Host())
    result = faults.outcome(lambda: attempt(built, CHECKED[adjoint], batch_fn=batch_fn))
    settle(record_property, result, FLAGGED, REFUSED)


@pytest.mark.parametrize("adjoint", CHECKED)
@pytest.mark.parametrize("rule", RULES)
def test_losses_that_the_host_makes_anew(rule, adjoint, record_property):
    built = rule_of(rule, host_loss(Host()))
    result = faults.outcome(lambda: attempt(built, CHECKED[adjoint]))
    settle(record_property, result, FLAGGED, REFUSED)

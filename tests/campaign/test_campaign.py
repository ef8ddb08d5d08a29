"""Random configurations: each run is restored bit for bit, and its hypergradient is `Direct()`'s.

A configuration is a kind of net, a rule, the forms of its learning rate and decay, a transformation
of JAX, a dtype, and a number of steps, drawn evenly from a fixed seed. Run one again by its name:
`pytest -m slow "tests/campaign/test_campaign.py::test_exactness[...]"`.

How near the two must be follows from the dtype. They take the same T steps, but `Direct()` rounds
every state to the dtype, and `Reversible()` keeps it in fixed point and rounds what the loss sees.
So each step puts them apart by a few units u of the dtype's last place, and a hypergradient, which
is a sum over the steps of what a step's error does to the end, by some T * u of its norm where the
training does not amplify errors: these nets and rates are small enough. The bound is 16 T u for
each leaf. Where it is passed both are compared with the same training in float64, from which
`Reversible()` may be no farther than twice what `Direct()` is: then the conditioning is to blame,
and both hypergradients must still be right to a tenth in every leaf.

Adam's decays are the exception. Its bias correction makes every step's average of gradients one of
weights that sum to one, so the end depends on a decay only by what successive gradients differ by,
and of that 16 bits keep a digit or none: `Direct()` itself may be off by more than its size. Such
leaves are counted apart ("undetermined"), and must still keep the first bound.

In float64 `Reversible()` rounds decays to multiples of 2**-48, as 16 u, and that is another
training; so both get decays that 48 bits hold. Nothing is more exact than float64 there: what is
taken for the error of `Direct()` is sqrt(T) times the farthest it moves when each number of its
start moves by one unit of the last place, up or down, four times: the start is rounded once, and
the T steps round independently.
"""

import contextlib
import dataclasses
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hgrad_jax as hg
from tests.campaign.campaign_layers import LAYERS, Net
from tests.campaign.campaign_programs import PROGRAMS
from tests.campaign.campaign_rules import FORMS, RULES, SCALAR_RATE, to_fraction

NETS: dict[str, Net] = LAYERS | PROGRAMS
NUM_CONFIGURATIONS = 126
DTYPES = ("float32", "float32", "float32", "float64", "float64", "bfloat16", "float16")
NUM_EXAMPLES = 6
UNIT = {name: float(jnp.finfo(name).eps) / 2 for name in DTYPES}


class Problem(NamedTuple):
    """A training and its outer objective.

    Attributes:
      run: what the training is, its adjoint to be chosen.
      params, hparams, data: its inputs.
      is_random: whether anything needs a key.
    """

    run: hg.Run
    params: Any
    hparams: Any
    data: Any
    is_random: bool


class Configuration(NamedTuple):
    """What is drawn."""

    net: str
    rule: str
    rate_form: str
    decay_form: str
    transformation: str
    dtype: str
    num_steps: int
    batches: str

    @property
    def name(self) -> str:
        return "-".join(str(x) for x in self)


def norm_of_params(state, data):
    del data
    return sum(
        jnp.sum(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))))
        for x in jax.tree.leaves(state.params)
    )


def objective(params, hparams, data):
    """The outer objective: a sum of smooth functions of the trained parameters."""
    del data
    leaves = [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in jax.tree.leaves(params)]
    through = sum(jnp.mean(jnp.sin(x + 0.3) + x**2) for x in leaves)
    return through + hparams["strength"] ** 2


def windows(data, t, key):
    del key
    return jax.tree.map(lambda x: jnp.roll(x, t, axis=0)[:4], data)


def chosen(data, t, key):
    del t
    rows = jax.random.permutation(key, NUM_EXAMPLES)[:4]
    return jax.tree.map(lambda x: x[rows], data)


BATCHES = {"whole": None, "windows": windows, "chosen": chosen}


def problem_of(configuration: Configuration, dtype: str, record: Any = None) -> Problem:
    """The configuration's problem; its numbers are those of its own dtype in any other one."""
    net, kind = NETS[configuration.net], RULES[configuration.rule]
    random = np.random.default_rng(zlib.crc32(configuration.name.encode()))
    shapes = (NUM_EXAMPLES, *net.input_shape), (NUM_EXAMPLES, 2)

    def rounded(x):
        return jnp.asarray(jnp.asarray(x, configuration.dtype), dtype)

    x, y = (rounded(random.standard_normal(shape)) for shape in shapes)
    params = jax.tree.map(rounded, net.start)
    # Hyperparameters of low-precision training are float32, as users have them.
    is_wide = "float64" in (dtype, configuration.dtype)
    hparams_dtype = jnp.float64 if is_wide else jnp.float32
    own_dtype = jnp.float64 if configuration.dtype == "float64" else jnp.float32
    sources, hparams, axes = {}, {"strength": 0.2}, {"strength": None}
    names = list(kind.values)
    for name, base in kind.values.items():
        form = FORMS[
            configuration.rate_form
            if name == names[0]
            else configuration.decay_form
            if name == names[1]
            else "scalar"
        ]
        source, value, axis = form(name, base, params, configuration.num_steps, random)
        sources[name] = to_fraction(name, source) if configuration.dtype == "float64" else source
        if value is not None:
            hparams[name], axes[name] = value, axis
    hparams = jax.tree.map(lambda h: jnp.asarray(jnp.asarray(h, own_dtype), hparams_dtype), hparams)

    def loss(params, hparams, batch, key):
        value = net.loss(params, *batch, hparams["strength"], key)
        penalty = sum(jnp.mean(jnp.square(p)) for p in jax.tree.leaves(params))
        return value + 0.1 * hparams["strength"] * jnp.asarray(penalty, value.dtype)

    run = hg.Run(
        kind.make(loss, **sources),
        num_steps=configuration.num_steps,
        batch_fn=BATCHES[configuration.batches],
        hparams_axes=axes,
        record=record,
    )
    is_random = (
        configuration.net in ("dropout", "variational", "flax_linen")
        or configuration.rule in ("modified", "estimated")
        or configuration.batches == "chosen"
    )
    return Problem(run, params, hparams, (x, y), is_random)


def found(problem, adjoint, params, hparams, key):
    run = dataclasses.replace(problem.run, adjoint=adjoint)
    key = key if problem.is_random else None
    return hg.value_and_hypergradient(objective, run, params, hparams, problem.data, key=key)


def trained(problem, adjoint, params, hparams, key):
    run = dataclasses.replace(problem.run, adjoint=adjoint)
    return hg.unroll(run, params, hparams, problem.data, key=key if problem.is_random else None)


def end(problem, adjoint, params, hparams, key):
    out = trained(problem, adjoint, params, hparams, key)
    traced = 0.0 if out.trace is None else jnp.mean(out.trace)
    return objective(out.params, hparams, None) + traced


def two(params):
    """Two starts side by side."""
    return jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]).astype(x.dtype), params)


KEYS = np.array([[0, 7], [3, 5]], np.uint32)


def plain(problem, adjoint):
    out = found(problem, adjoint, problem.params, problem.hparams, jnp.asarray(KEYS[0]))
    return (out.hparams, out.params), out.info


def vmap_of_grad(problem, adjoint):
    def one(params, key):
        out = found(problem, adjoint, params, problem.hparams, key)
        return (out.hparams, out.params), out.info

    return jax.vmap(one)(two(problem.params), jnp.asarray(KEYS))


def grad_of_vmap(problem, adjoint):
    def total(params, hparams):
        ends = jax.vmap(lambda params, key: end(problem, adjoint, params, hparams, key))
        return jnp.sum(ends(params, jnp.asarray(KEYS)))

    return jax.grad(total, (1, 0))(two(problem.params), problem.hparams), None


def vmap_of_vmap(problem, adjoint):
    def one(params, scale, key):
        hparams = problem.hparams | {"strength": scale * problem.hparams["strength"]}
        out = found(problem, adjoint, params, hparams, key)
        return (out.hparams, out.params), out.info

    over_keys = jax.vmap(one, (None, None, 0))
    scales = jnp.asarray([1.0, 0.5], problem.hparams["strength"].dtype)
    return jax.vmap(over_keys, (0, 0, None))(two(problem.params), scales, jnp.asarray(KEYS))


def grad_in_scan(problem, adjoint):
    """Meta-steps: each hypergradient moves the hyperparameters of the next."""

    def meta_step(hparams, key):
        out = found(problem, adjoint, problem.params, hparams, key)
        moved = jax.tree.map(lambda h, g: h * (1 - 0.02 * jnp.tanh(g)), hparams, out.hparams)
        return moved, ((out.hparams, out.params), out.info)

    return jax.lax.scan(meta_step, problem.hparams, jnp.asarray(KEYS))[1]


def scan_in_scan(problem, adjoint):
    """The gradient of a scan over two trainings, the second from the end of the first."""

    def last(params, hparams):
        def training(params, key):
            return trained(problem, adjoint, params, hparams, key).params, None

        return objective(jax.lax.scan(training, params, jnp.asarray(KEYS))[0], hparams, None)

    return jax.grad(last, (1, 0))(problem.params, problem.hparams), None


def grad_of_checkpoint(problem, adjoint):
    def last(params, hparams):
        return end(problem, adjoint, params, hparams, jnp.asarray(KEYS[0]))

    return jax.grad(jax.checkpoint(last), (1, 0))(problem.params, problem.hparams), None


def grad_of_trace(problem, adjoint):
    """The objective has the whole path in it, by `record`."""
    problem = problem._replace(run=dataclasses.replace(problem.run, record=norm_of_params))

    def last(params, hparams):
        return end(problem, adjoint, params, hparams, jnp.asarray(KEYS[0]))

    return jax.grad(last, (1, 0))(problem.params, problem.hparams), None


TRANSFORMATIONS = {
    "jit": plain,
    "vmap_of_grad": vmap_of_grad,
    "grad_of_vmap": grad_of_vmap,
    "vmap_of_vmap": vmap_of_vmap,
    "grad_in_scan": grad_in_scan,
    "scan_in_scan": scan_in_scan,
    "grad_of_checkpoint": grad_of_checkpoint,
    "grad_of_trace": grad_of_trace,
}


def evenly(random, names, count):
    """As many of each as of any other, in random order."""
    names = list(names)
    return random.permutation([names[i % len(names)] for i in range(count)]).tolist()


def draw() -> list[Configuration]:
    random = np.random.default_rng(2026)
    nets = evenly(random, NETS, NUM_CONFIGURATIONS)
    columns = [
        evenly(random, names, len(nets))
        for names in (RULES, FORMS, FORMS, TRANSFORMATIONS, DTYPES, range(5, 15), BATCHES)
    ]
    drawn = []
    for net, rule, rate_form, *rest in zip(nets, *columns, strict=True):
        if RULES[rule].is_forward and not NETS[net].is_forward:
            rule = "heavy_ball"
        if rule in SCALAR_RATE and rate_form in (
            "per_leaf",
            "per_number",
            "per_number_and_step",
            "product",
        ):
            rate_form = "per_step"
        drawn.append(Configuration(net, rule, rate_form, *rest))
    return drawn


CONFIGURATIONS = draw()


def differences(got: Any, want: Any) -> list[float]:
    """For each leaf the distance relative to the norm, in float64."""
    result = []
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = (np.asarray(z).astype(np.float64) for z in (x, y))
        size = np.linalg.norm(y)
        result.append(float(np.linalg.norm(x - y) / size) if size > 0 else float(np.abs(x).max()))
    return result


def transformed(configuration: Configuration, problem: Problem, adjoint: hg.Adjoint) -> Any:
    """Returns the hypergradients of params and hparams, and the info if there is one."""
    run = program(configuration, problem, adjoint)
    return run(problem.params, problem.hparams, problem.data)


def program(configuration: Configuration, problem: Problem, adjoint: hg.Adjoint) -> Any:
    """Returns the compiled function of params, hparams and data.

    All arrays are arguments: as constants of the program the compiler would compute with them.
    """

    @jax.jit
    def run(params, hparams, data):
        given = problem._replace(params=params, hparams=hparams, data=data)
        return TRANSFORMATIONS[configuration.transformation](given, adjoint)

    return run


def nearby(params: Any, seed: int) -> Any:
    """Every parameter one unit of the last place up or down."""
    random = np.random.default_rng(seed)

    def moved(x):
        return jnp.nextafter(x, jnp.asarray(random.choice([-np.inf, np.inf], x.shape), x.dtype))

    return jax.tree.map(moved, params)


def in_float64(configuration: Configuration) -> Any:
    with jax.enable_x64(True):
        return transformed(configuration, problem_of(configuration, "float64"), hg.Direct())[0]


def errors_of_both(
    configuration: Configuration, got: Any, want: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the leaf errors of `Reversible()` and of `Direct()`."""
    if configuration.dtype != "float64":
        truth = in_float64(configuration)
        return np.array(differences(got, truth)), np.array(differences(want, truth))
    with jax.enable_x64(True):
        problem = problem_of(configuration, "float64")
        run = program(configuration, problem, hg.Direct())
        starts = [nearby(problem.params, seed) for seed in range(4)]
        ends = [run(start, problem.hparams, problem.data)[0] for start in starts]
        others = [differences(end, want) for end in ends]
        moved = np.sqrt(configuration.num_steps) * np.max(others, axis=0)
    return np.array(differences(got, want)), moved


def are_decays_of_adam(configuration: Configuration, gradients: Any) -> np.ndarray:
    """Returns for each leaf of the hypergradients whether it belongs to a decay of Adam."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(gradients)]
    names = [jax.tree_util.keystr(path) for path in paths]
    is_adam = configuration.rule in ("adam", "adamw")
    return np.array([is_adam and ("['b1']" in name or "['b2']" in name) for name in names])


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: c.name)
def test_exactness(configuration, record_property):
    needs_x64 = configuration.dtype == "float64"
    with jax.enable_x64(True) if needs_x64 else contextlib.nullcontext():
        problem = problem_of(configuration, configuration.dtype)
        got, info = transformed(configuration, problem, hg.Reversible())
        want, plain_info = transformed(configuration, problem, hg.Direct())
    # Where the start is not restored every number is NaN: what `jax.grad` can say.
    is_restored = all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(got))
    is_restored &= info is None or not bool(jnp.any(info.mismatches))
    errors = np.array(differences(got, want))
    bound = 16 * configuration.num_steps * UNIT[configuration.dtype]
    figures = {
        "net": configuration.net,
        "dtype": configuration.dtype,
        "is_restored": is_restored,
        "error": float(errors.max()),
        "is_by_float64": bool((errors > bound).any()),
        "is_undetermined": False,
    }
    record_property("exactness", figures)
    if info is not None:
        hg.check(info)
        hg.check(plain_info)
    assert is_restored
    if figures["is_by_float64"]:
        own, others = errors_of_both(configuration, got, want)
        assert np.all(own <= 2 * others + bound), (errors.max(), own.max(), others.max())
        excepted = are_decays_of_adam(configuration, got) & (UNIT[configuration.dtype] > 1e-4)
        figures["is_undetermined"] = bool(np.any(np.maximum(own, others)[excepted] >= 0.1))
        assert np.all(own[~excepted] < 0.1), own.max()
        assert np.all(others[~excepted] < 0.1), others.max()

"""One good call of every public callable, for `test_fuzz` to spoil argument by argument.

A `Call` has the arguments that work, and what is done with the result: a rule trains, an adjoint
differentiates, a solver solves. What only holds results is in RECORDS, and is not called.
"""

# What users pass is wrong on purpose.
# pyright: reportArgumentType=false, reportCallIssue=false

import inspect
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import hgrad_jax as hg
from hgrad_jax import data, forward_gradients, hyper, models, online

MODULES = {
    "hg": hg,
    "models": models,
    "data": data,
    "hyper": hyper,
    "online": online,
    "forward_gradients": forward_gradients,
}

KEY = jax.random.key(0)
DIRECT = hg.Direct()
PARAMS = {"w": jnp.array([0.5, -0.25], jnp.float32)}
RATES = {"learning_rate": 0.1, "momentum": 0.5}
X, Y = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4), np.arange(6) % 3
TRAIN, VALID = (X[:4], Y[:4]), (X[4:], Y[4:])
MODEL = models.MLP((3, 3))
WEIGHTS = MODEL.init(KEY, X[:1], train=False)["params"]
CONV = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 4, 4, 1)


class Call(NamedTuple):
    """A good call.

    Attributes:
      function: what is called.
      given: arguments by name.
      use: `use(result) -> pytree` whose numbers must be finite.
      numbers: names of the arguments that are numbers to compute with, as params are, rather than
        settings: not finite in, not finite out.
      extra: what `*args` is, and its name.
      also: what a message may call the argument besides its name.
      kept: names of arguments that are not spoilt.
      may_raise: an exception that is a fair answer, whatever it names.
    """

    function: Callable[..., Any]
    given: dict[str, Any]
    use: Callable[[Any], Any] = lambda result: result
    numbers: tuple[str, ...] = ()
    extra: tuple[str, tuple[Any, ...]] | None = None
    kept: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    may_raise: tuple[type[Exception], ...] = (hg.HypergradientError, hg.TuningError)


def loss(params, hparams, batch, key):
    return sum((jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(params)), jnp.float32(0))


def penalized(params, hparams, batch, key):
    return loss(params, hparams, batch, key) + hparams["l2"] * jnp.sum(params["w"] ** 2)


def objective(params, hparams, outer_data):
    return loss(params, hparams, None, None)


def record(state, data):
    return state.params


def batch_fn(data, t, key):
    return data


def metrics(params, data):
    return {"loss": loss(params, None, None, None)}


def pulled(params, hparams, batch, key):
    return jax.tree.map(lambda x: (1 + hparams["l2"]) * x - 1, params)


RULE = hg.heavy_ball(loss)
FIXED = hg.heavy_ball(penalized, learning_rate=0.1, momentum=0.5)
L2 = {"l2": jnp.float32(0.5)}


def differentiated(rule, hparams=RATES, adjoint=DIRECT, num_steps=4, batches=None, **more):
    """The objective after a run, and its checked hypergradient."""
    found = hg.value_and_hypergradient(
        objective,
        hg.Run(rule, num_steps=num_steps, adjoint=adjoint, **more),
        PARAMS,
        hparams,
        batches,
    )
    hg.check(found.info)
    return found.value, found.hparams


def trained(rule, hparams=RATES, batches=None, **more):
    """The parameters after a checked run."""
    out = hg.unroll(hg.Run(rule, num_steps=2, **more), PARAMS, hparams, batches, key=KEY)
    return hg.check(out).params


def as_gradient(provider):
    return trained(hg.sgd(loss, learning_rate=0.1, gradient=provider))


def modifying(*modifiers):
    return as_gradient(hg.modified(hg.backpropagation, *modifiers))


def undone(adjoint):
    return differentiated(RULE, adjoint=adjoint)


def implicitly(adjoint):
    return differentiated(FIXED, L2, adjoint, num_steps=100)


def on_condition(condition):
    return implicitly(hg.Implicit(condition, hg.GMRES(), stationarity_tolerance=0.5))


def solved(solver):
    return solver.solve(lambda x: jnp.array([1.0, 0.5]) * x, jnp.ones(2))[0]


def online_end(rule, hparams=RATES, make=None, num_steps=2):
    batches = (jnp.ones(2), jnp.ones(2))
    return trained(rule, hparams, batches, batch_fn=make or hg.online.paired())


def on_pair(make_batch):
    return make_batch((X, X), 1, KEY)


def on_data(make_batch):
    return make_batch((X, Y), 1, KEY)


def logits(model):
    inputs = CONV if isinstance(model, models.CNN) else X
    variables = model.init(KEY, inputs, train=True)
    return model.apply(variables, inputs, train=True, rngs={"dropout": KEY})


def drawn(init):
    return init(KEY, (3, 2))


def adapted(optimizer):
    hparams = {"rate": jnp.float32(0.5)}
    return optimizer.update({"rate": jnp.float32(1)}, optimizer.init(hparams), hparams)[0]


def run(hparams, key, data):
    return {"value": hparams["rate"] ** 2}


def tuned(**more):
    return hg.tune(**TUNE | more).hparams


def kicking(**more):
    pieces = {
        "kick": lambda gradient, hparams, count: {"velocity": jax.tree.map(jnp.negative, gradient)},
        "drift": lambda slots, hparams, count: jax.tree.map(lambda v: 0.1 * v, slots["velocity"]),
        "decays": lambda hparams, count: {"velocity": 0.9},
        "slots": {"velocity": hg.Slot()},
    }
    return pieces | more


def of_slot(slot):
    return undone_rule(hg.kick_drift(loss, **kicking(slots={"velocity": slot})))


def undone_rule(rule):
    return differentiated(rule, adjoint=hg.Reversible())


RUN = hg.Run(RULE, num_steps=2)
UNROLL = {"run": RUN, "params": PARAMS, "hparams": RATES, "data": None}
OUTER = {"objective": objective, **UNROLL}
OPTIMIZER = optax.sgd(0.01)
META = {
    "objective": objective,
    "run": RUN,
    "params": PARAMS,
    "hparams": RATES,
    "data": X[:4],
    "outer_data": X[4:],
    "optimizer": OPTIMIZER,
}
TUNE = META | {"num_meta_steps": 1, "progress": False}
FIT = {
    "transition": RULE,
    "params": PARAMS,
    "hparams": RATES,
    "train": X,
    "num_epochs": 1,
    "metrics": metrics,
    "progress": False,
}
LEARNED = {
    "inner": RULE,
    "valid_loss": loss,
    "learned": ("learning_rate",),
    "make_tx": lambda hparams: optax.sgd(0.01),
}
RULE_OF_LOSS: dict[str, Any] = {"loss": loss}
INFO = hg.unroll(**UNROLL).info


def _rule(function, **given):
    return Call(function, RULE_OF_LOSS | given, trained)


def _folder(function, **given):
    return Call(function, {"folder": tempfile.gettempdir() + "/hgrad_jax_fuzz"} | given)


def _loading(function, **given):
    """A data set's files may not be here, and are not fetched for a test."""
    if "download" in inspect.signature(function).parameters:
        given |= {"download": False}
    return Call(
        function,
        given,
        lambda found: None,
        kept=("download",),
        may_raise=(data.DataUnavailableError,),
    )


CALLS: Mapping[str, Call] = {
    "hg.Checkpointed": Call(hg.Checkpointed, {}, undone),
    "hg.Clip": Call(hg.Clip, {}, lambda clip: undone(hg.DrMAD(clip=clip))),
    "hg.ConjugateGradient": Call(hg.ConjugateGradient, {}, solved),
    "hg.DrMAD": Call(hg.DrMAD, {}, undone),
    "hg.DrMAD2": Call(hg.DrMAD2, {}, undone),
    "hg.EarlyDisplacement": Call(
        hg.EarlyDisplacement, {}, lambda early: undone(hg.DrMAD(reverse_steps=early))
    ),
    "hg.EarlyStopping": Call(
        hg.EarlyStopping,
        {"metric": "train_loss"},
        lambda choice: hg.fit(**FIT, early_stopping=choice).params,
        also=("metrics",),
    ),
    "hg.EqualArcLength": Call(
        hg.EqualArcLength, {}, lambda placed: undone(hg.Waypoints(3, placement=placed))
    ),
    "hg.FixedPoint": Call(
        hg.FixedPoint,
        {"function": lambda p, h, b, k: jax.tree.map(lambda x: 1 - h["l2"] * x, p)},
        on_condition,
    ),
    "hg.ForwardMode": Call(hg.ForwardMode, {}, undone),
    "hg.GMRES": Call(hg.GMRES, {}, solved),
    "hg.Implicit": Call(hg.Implicit, {}, implicitly),
    "hg.Neumann": Call(hg.Neumann, {"step_size": 0.5}, solved),
    "hg.RandomModifier": Call(
        hg.RandomModifier, {"modify": lambda gradient, params, hparams, key: gradient}, modifying
    ),
    "hg.Reversible": Call(hg.Reversible, {}, undone),
    "hg.Root": Call(hg.Root, {"function": pulled}, on_condition),
    "hg.Run": Call(
        hg.Run,
        {"transition": RULE, "num_steps": 2},
        lambda run: hg.check(hg.unroll(**UNROLL | {"run": run})).params,
    ),
    "hg.Skip": Call(hg.Skip, {}, lambda skip: tuned(on_bad=skip)),
    "hg.Slot": Call(hg.Slot, {}, of_slot),
    "hg.Standardized": Call(hg.Standardized, {}, lambda d: as_gradient(hg.forward_gradient(d))),
    "hg.Stationary": Call(hg.Stationary, {"loss": penalized}, on_condition),
    "hg.Target": Call(
        hg.Target,
        {"metric": "train_loss", "value": 0.1},
        lambda choice: hg.fit(**FIT, target=choice).params,
        also=("metrics",),
    ),
    "hg.Transition": Call(
        hg.Transition,
        {"init": RULE.init, "step": RULE.step, "params": RULE.params},
        trained,
    ),
    "hg.Truncated": Call(hg.Truncated, {"window": 2}, undone),
    "hg.Waypoints": Call(hg.Waypoints, {"count": 3}, undone),
    "hg.Checkpoints": _folder(hg.Checkpoints),
    "hg.Records": _folder(hg.Records),
    "hg.adam": _rule(hg.adam),
    "hg.adamw": _rule(hg.adamw, weight_decay=0.1),
    "hg.add_noise": Call(hg.add_noise, {"scale": 0.1}, modifying, also=("noise_scale",)),
    "hg.add_weight_decay": Call(hg.add_weight_decay, {"strength": 0.1}, modifying),
    "hg.average": Call(hg.average, {"transition": RULE, "decay": 0.9}, trained),
    "hg.backpropagation": Call(
        hg.backpropagation, {"loss": loss}, lambda gradient: gradient(PARAMS, RATES, None, None)
    ),
    "hg.check": Call(hg.check, {"info": INFO}),
    "hg.check_gradient": Call(
        hg.check_gradient,
        {"loss": lambda params: loss(params, None, None, None), "params": PARAMS},
        str,
        numbers=("params",),
    ),
    "hg.check_hypergradient": Call(hg.check_hypergradient, OUTER | {"num_samples": 1}, str),
    "hg.classical_momentum": _rule(hg.classical_momentum),
    "hg.clip_by_norm": Call(hg.clip_by_norm, {"bound": 0.1}, modifying),
    "hg.clip_by_value": Call(hg.clip_by_value, {"bound": 0.1}, modifying),
    "hg.compare": Call(hg.compare, OUTER | {"adjoints": [hg.Direct()], "repeats": 0}, str),
    "hg.cotangent_norms": Call(hg.cotangent_norms, OUTER, lambda found: found.norms),
    "hg.data_parallel": Call(hg.data_parallel, {"loss": loss}, lambda result: None),
    "hg.distances_to": Call(
        hg.distances_to,
        {"target_params": PARAMS, **UNROLL},
        lambda found: found.distances,
        ("target_params",),
    ),
    "hg.field": Call(hg.field, {"name": "momentum"}, lambda read: read(RATES), also=("hparams",)),
    "hg.fit": Call(hg.fit, FIT, lambda out: hg.check(out).params),
    "hg.forward_gradient": Call(hg.forward_gradient, {}, as_gradient),
    "hg.from_optax": Call(
        hg.from_optax, {"make_tx": lambda hparams: optax.sgd(0.1), "loss": loss}, trained
    ),
    "hg.grid": Call(hg.grid, {"values": {"rate": [0.1, 0.2]}}, lambda s: hg.sweep(run, s).results),
    "hg.heavy_ball": _rule(hg.heavy_ball),
    "hg.hvp": Call(
        hg.hvp,
        {"loss": lambda p: loss(p, 0, 0, 0), "params": PARAMS, "direction": PARAMS},
        numbers=("direction", "params"),
    ),
    "hg.jacobian_of_final_params": Call(hg.jacobian_of_final_params, UNROLL),
    "hg.kick_drift": Call(hg.kick_drift, {"loss": loss} | kicking(), undone_rule),
    "hg.mean_and_spread": Call(hg.mean_and_spread, {"tree": {"a": jnp.arange(3.0)}}),
    "hg.meta_step": Call(
        hg.meta_step,
        META | {"opt_state": OPTIMIZER.init(RATES)},
        lambda step: hg.check(step.found.info) and step.hparams,
    ),
    "hg.meta_steps": Call(
        hg.meta_steps, META | {"num_meta_steps": 1}, lambda found: hg.check(found).hparams
    ),
    "hg.mixed_product": Call(
        hg.mixed_product,
        {
            "loss": lambda p, h: penalized(p, h, None, None),
            "params": PARAMS,
            "hparams": L2,
            "direction": PARAMS,
        },
        numbers=("direction",),
    ),
    "hg.modified": Call(
        hg.modified,
        {"provider": hg.backpropagation},
        as_gradient,
        extra=("modifier", (hg.clip_by_norm(1.0),)),
    ),
    "hg.momentum": _rule(hg.momentum),
    "hg.nesterov": _rule(hg.nesterov),
    "hg.nonnegative_adam": Call(hg.nonnegative_adam, {"learning_rate": 0.1}, adapted),
    "hg.over_devices": Call(
        hg.over_devices, {"function": lambda x: x + 1}, lambda function: function(jnp.arange(2.0))
    ),
    "hg.plan": Call(
        hg.plan,
        OUTER | {"memory": 1e9, "adjoints": [hg.Direct()], "is_timed": False},
        str,
    ),
    "hg.polyak_average": Call(hg.polyak_average, {"transition": RULE}, trained),
    "hg.project_to_box": Call(
        hg.project_to_box, {"transition": RULE, "lower": 0.0, "upper": 1.0}, trained
    ),
    "hg.projected": Call(
        hg.projected,
        {"optimizer": OPTIMIZER, "projection": optax.projections.projection_non_negative},
        adapted,
    ),
    "hg.projections": Call(
        hg.projections,
        UNROLL | {"num_components": 1, "num_random": 1, "coordinate_key": KEY},
        lambda found: found.coordinates if hasattr(found, "coordinates") else None,
    ),
    "hg.reversal_errors": Call(hg.reversal_errors, UNROLL, lambda found: found.errors),
    "hg.rmsprop": _rule(hg.rmsprop),
    "hg.rmsprop_momentum": _rule(hg.rmsprop_momentum),
    "hg.sgd": _rule(hg.sgd),
    "hg.sign_descent": Call(hg.sign_descent, {"learning_rate": 0.1}, adapted),
    "hg.sweep": Call(
        hg.sweep,
        {"run": run, "settings": [{"rate": 0.1}, {"rate": 0.2}]},
        lambda s: s.results,
        ("settings",),
    ),
    "hg.tune": Call(hg.tune, TUNE, lambda out: out.hparams),
    "hg.unroll": Call(hg.unroll, UNROLL, lambda out: hg.check(out).params),
    "hg.value_and_hypergradient": Call(
        hg.value_and_hypergradient, OUTER, lambda found: hg.check(found.info) and found.hparams
    ),
    "hg.vjp": Call(hg.vjp, UNROLL, lambda made: hg.check(made[1](PARAMS)[1]) and made[0].params),
    "models.BatchNorm": Call(models.BatchNorm, {}, logits),
    "models.CNN": Call(models.CNN, {"num_classes": 3, "channels": (2,), "hidden": (3,)}, logits),
    "models.MLP": Call(models.MLP, {"features": (3, 3)}, logits),
    "models.SoftmaxRegression": Call(models.SoftmaxRegression, {"num_classes": 3}, logits),
    "forward_gradients.activity_forward_gradient": Call(
        forward_gradients.activity_forward_gradient,
        {"example_losses": forward_gradients.example_losses(MODEL)},
        lambda provider: provider(None)(WEIGHTS, {}, (X, Y), KEY),
    ),
    "models.batch_statistics": Call(
        models.batch_statistics,
        {"model": MODEL, "params": WEIGHTS, "inputs": X},
        numbers=("params", "inputs"),
    ),
    "models.classification_loss": Call(
        models.classification_loss,
        {"model": MODEL},
        lambda loss: loss(WEIGHTS, {}, (X, Y), KEY),
    ),
    "models.classification_metrics": Call(
        models.classification_metrics, {"model": MODEL}, lambda metrics: metrics(WEIGHTS, (X, Y))
    ),
    "models.cosine": Call(models.cosine, {}, drawn),
    "models.cross_entropy": Call(
        models.cross_entropy, {"logits": X, "labels": Y}, numbers=("logits", "labels")
    ),
    "models.error_rate": Call(
        models.error_rate, {"logits": X, "labels": Y}, numbers=("logits", "labels")
    ),
    "forward_gradients.example_losses": Call(
        forward_gradients.example_losses,
        {"model": MODEL},
        lambda losses: losses(WEIGHTS, {}, (X, Y), KEY),
    ),
    "models.uniform": Call(models.uniform, {"low": 0.0, "high": 1.0}, drawn),
    "data.full_batch": Call(data.full_batch, {}, on_data),
    "data.load": _loading(data.load, name="digits"),
    "data.load_cifar10": _loading(data.load_cifar10),
    "data.load_cifar10_subset": _loading(data.load_cifar10_subset),
    "data.load_mnist": _loading(data.load_mnist),
    "data.load_usps": _loading(data.load_usps),
    "data.minibatches": Call(data.minibatches, {"batch_size": 2}, on_data),
    "data.shared_examples": Call(data.shared_examples, {"data": X, "other": X}),
    "data.shuffled": Call(data.shuffled, {"batch_size": 2, "seed": 0}, on_data),
    "data.split": Call(
        data.split,
        {"data": X, "sizes": (4, 2), "seed": 0},
        numbers=("data",),
        also=("examples", "fractions"),
    ),
    "data.validate_examples": Call(
        data.validate_examples, {"data": (X, Y), "num_classes": 3}, numbers=("data",)
    ),
    "data.validate_finite": Call(data.validate_finite, {"data": X}, numbers=("data",)),
    "data.with_replacement": Call(data.with_replacement, {"batch_size": 2}, on_data),
    "hyper.by_shape": Call(
        hyper.by_shape,
        {"shape_map": lambda shape: ()},
        lambda sharing: sharing.expand(sharing.init(PARAMS, 0.5), PARAMS),
    ),
    "hyper.l1": Call(
        hyper.l1, {"params": PARAMS, "coefficients": 0.1}, numbers=("params", "coefficients")
    ),
    "hyper.l2": Call(
        hyper.l2, {"params": PARAMS, "coefficients": 0.1}, numbers=("params", "coefficients")
    ),
    "hyper.log.from_value": Call(hyper.log.from_value, {"x": 0.1}, also=("value",)),
    "hyper.log.to_value": Call(hyper.log.to_value, {"u": 0.1}, numbers=("u",)),
    "hyper.logit.from_value": Call(hyper.logit.from_value, {"x": 0.1}, also=("value",)),
    "hyper.over_windows": Call(
        hyper.over_windows, {"values": jnp.ones(2), "num_steps": 4}, numbers=("values",)
    ),
    "hyper.per_tensor.init": Call(
        hyper.per_tensor().init, {"params": PARAMS, "value": 0.5}, numbers=("value",)
    ),
    "hyper.per_tensor.expand": Call(
        hyper.per_tensor().expand, {"small": {"w": 1.0}, "params": PARAMS}, numbers=("small",)
    ),
    "hyper.rescaled": Call(
        hyper.rescaled,
        {"loss": loss, "log_scale": 0.1, "log_penalty": 0.1},
        lambda loss: loss(PARAMS, RATES, None, None),
        ("log_scale", "log_penalty"),
    ),
    "hyper.weighted_mean": Call(
        hyper.weighted_mean,
        {"losses": jnp.ones(2), "weights": jnp.ones(2)},
        numbers=("losses", "weights"),
    ),
    "hyper.weights_of": Call(
        hyper.weights_of, {"params": PARAMS, "log_scale": 0.1}, numbers=("params", "log_scale")
    ),
    "online.adaptive": Call(
        online.adaptive,
        LEARNED | {"every": 2, "window": 1},
        lambda rule: online_end(rule, make=online.periods(every=2)),
    ),
    "online.by_sign": Call(
        online.by_sign,
        {"step_sizes": {"learning_rate": 0.1}},
        lambda make_tx: online_end(online.t1_t2(**LEARNED | {"make_tx": make_tx})),
    ),
    "online.hypergradient_descent": Call(
        online.hypergradient_descent, {"loss": loss, "hyper_rate": 0.01}, trained
    ),
    "online.paired": Call(online.paired, {}, on_pair),
    "online.periods": Call(online.periods, {"every": 2}, on_pair),
    "online.rtho": Call(online.rtho, LEARNED, online_end),
    "online.t1_t2": Call(online.t1_t2, LEARNED, online_end),
}

NUMBERS = ("params", "hparams", "data", "outer_data", "train", "valid", "test", "init_params")
"""Arguments that are numbers to compute with, of any call."""


def _of(module, *names):
    return [f"{module}.{name}" for name in names]


RECORDS = {
    *_of(
        "hg",
        "Adjoint",
        "Interrupted",
        "AverageState",
        "BackwardInfo",
        "Bars",
        "Best",
        "BestHparams",
        "CheckpointError",
        "Comparison",
        "Directions",
        "Fit",
        "GradientReport",
        "History",
        "Hypergradient",
        "HypergradientError",
        "KickDrift",
        "KickDriftState",
        "MetaStep",
        "MetaSteps",
        "Moments",
        "OptaxState",
        "Plan",
        "RunInfo",
        "Sweep",
        "Tuned",
        "TuningError",
        "TuningHistory",
        "Unrolled",
        "Work",
    ),
    *_of("data", "DataUnavailableError", "Dataset", "Splits", "Usps"),
    *_of("hyper", "Parametrization", "Sharing"),
    *_of("online", "Batches", "DescentState", "OnlineState", "Period", "RealTimeState"),
}
"""What holds results, or is a base class or an exception."""

NO_ARGUMENTS = {
    *_of("hg", "Direct", "EvenSteps", "Gaussian", "Orthogonal", "Rademacher", "Stop"),
    *_of("data", "load_digits", "load_penguins"),
    *_of(
        "hyper",
        "one_for_all",
        "per_filter",
        "per_input_unit",
        "per_output_unit",
        "per_parameter",
        "per_tensor",
    ),
    *_of("online", "additive", "multiplicative"),
}
"""What is called without arguments, or (the last two) is called by the library alone."""

ODD: Mapping[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "0": 0,
    "10**18": 10**18,
    "0.5": 0.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "1j": 1j,
    "text": "text",
    "bytes": b"bytes",
    "()": (),
    "[1]": [1],
    "{}": {},
    "{'a': 1.0}": {"a": 1.0},
    "array of two": np.ones(2),
    "jax ints": jnp.arange(3),
    "np.float64": np.float64(0.5),
    "jax bool": jnp.array(True),
    "array of text": np.array(["a", "b"]),
    "object()": object(),
    "wrong arity": lambda: None,
    "returns object": lambda *args: object(),
    "class": int,
    "module": nn,
    "key": KEY,
}
"""What an argument is replaced by."""


def public_names() -> list[str]:
    """The callables that the package and its public modules hand out."""
    names = []
    for module_name, module in MODULES.items():
        for name, value in vars(module).items():
            is_own = str(getattr(value, "__module__", "")).startswith("hgrad_jax")
            if callable(value) and is_own and not name.startswith("_"):
                names.append(f"{module_name}.{name}")
    return names

"""Meta-steps of the study of DrMAD: three hypergradients each, and a step along one's signs.

Initial weights and batches are those of the first meta-step, since a hyperparameter of a unit means
something only as long as the symmetry between units breaks the same way. The records of a tuning
are a file of JSON lines, the first of which says what was tuned; from them a tuning goes on where
it was killed, with the same bits.
"""

import functools
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hgrad_jax as hg
from experiments import rescaled_mlp
from experiments.common import environment
from experiments.drmad_study_config import Config
from experiments.rescaled_mlp import Images
from hgrad_jax.data import Dataset, minibatches
from hgrad_jax.diagnostics.comparison import cosine
from hgrad_jax.models import MLP, classification_metrics
from hgrad_jax.models.initializers import scaled_normal
from hgrad_jax.trajectory import Trajectory, first_state, inputs
from hgrad_jax.tuning.records import plain, write_whole

# What a tuning depends on; a longer one goes on from a shorter one.
SETTINGS = (
    *("data", "sharing", "log_scale", "log_penalty", "log_init", "learning_rate", "momentum"),
    *("batch_size", "meta_step_size", "displacement_factor"),
)


class Problem(NamedTuple):
    """What is trained and judged.

    Attributes:
      model: the network.
      objective: `objective(z, scales, examples)`, the validation loss.
      rule: momentum on the training loss.
      batch_fn: the same order of the images in every epoch.
    """

    model: MLP
    objective: Any
    rule: hg.Transition
    batch_fn: Any


class Start(NamedTuple):
    """What a seed determines: the images, the initial z, and the first scales."""

    images: Images
    params: Any
    scales: Any


class Programs(NamedTuple):
    """What is compiled once for all seeds and meta-steps of one length of training.

    Attributes:
      hypergradients: `run(params, scales, train, valid) -> outputs`, by the adjoint's name.
      temp_bytes: their temporaries; None where the backend does not tell.
      metrics: `metrics(trained params, scales, images) -> {name: scalar}`.
    """

    hypergradients: dict[str, Callable[..., Any]]
    temp_bytes: dict[str, int | None]
    metrics: Callable[..., Any]


def problem(config: Config) -> Problem:
    """Returns the problem, which holds no array."""
    init = scaled_normal(math.exp(config.log_init))
    model = rescaled_mlp.make_model(init, init)
    rule = hg.momentum(
        rescaled_mlp.training_loss(model, config.log_penalty),
        learning_rate=config.learning_rate,
        momentum=config.momentum,
    )
    objective = rescaled_mlp.validation_loss(model)
    return Problem(model, objective, rule, minibatches(config.batch_size))


def start(config: Config, seed: int) -> Start:
    """Returns what a seed determines.

    Raises:
      DataUnavailableError: the data are not there.
    """
    images = rescaled_mlp.load_images(config.data, config.data_dir, seed)
    params = rescaled_mlp.initial_params(problem(config).model, images, seed)
    sharings = {"unit": hg.hyper.per_output_unit(), "weight": hg.hyper.per_parameter()}
    return Start(images, params, sharings[config.sharing].init(params, config.log_scale))


def adjoints(config: Config) -> dict[str, hg.Adjoint]:
    """Returns what is compared, by name."""
    displacement = hg.EarlyDisplacement(factor=config.displacement_factor)
    return {
        "exact": hg.Reversible(smallest_decay=config.momentum),
        "DrMAD": hg.DrMAD(displacement),
        "DrMAD2": hg.DrMAD2(reverse_steps=displacement),
    }


def programs(config: Config, num_steps: int, first: Start) -> Programs:
    """Compiles a hypergradient by each adjoint."""
    what, args = problem(config), (first.params, first.scales, *first.images[:2])
    compiled, temp_bytes = {}, {}
    for name, adjoint in adjoints(config).items():
        one = functools.partial(_hypergradient, what, num_steps, adjoint)
        compiled[name] = jax.jit(one).lower(*args).compile()
        memory = compiled[name].memory_analysis()
        temp_bytes[name] = None if memory is None else memory.temp_size_in_bytes
    # The test part is an argument of this one alone.
    return Programs(compiled, temp_bytes, jax.jit(functools.partial(_metrics, what.model)))


def meta_step(
    config: Config,
    compiled: Programs,
    given: Start,
    follow: str,
) -> tuple[dict[str, Any], Any]:
    """Returns what is recorded at some scales, and the scales after a step along signs.

    Raises:
      HypergradientError: the exact hypergradient or the one that is followed is not to be had.
    """
    found, seconds = {}, {}
    for name, run in compiled.hypergradients.items():
        begun = time.perf_counter()
        args = (given.params, given.scales, *given.images[:2])
        found[name] = jax.block_until_ready(run(*args))
        seconds[name] = time.perf_counter() - begun
    exact = found["exact"]
    for name in {"exact", follow}:
        hg.check(found[name]["info"])
    flat = {name: flattened(each["hypergradient"]) for name, each in found.items()}
    others = [name for name in flat if name != "exact"]
    signs = {name: np.sign(each) for name, each in flat.items()}
    optimizer = hg.sign_descent(config.meta_step_size)
    update, _ = optimizer.update(found[follow]["hypergradient"], optimizer.init(given.scales))
    record = {
        "value": exact["value"],
        **compiled.metrics(exact["params"], given.scales, given.images),
        "norm": {name: np.linalg.norm(each) for name, each in flat.items()},
        "cosine": {name: cosine(flat[name], flat["exact"]) for name in others},
        "sign_cosine": {name: cosine(signs[name], signs["exact"]) for name in others},
        "reverse_steps": {name: found[name]["reverse_steps"] for name in others},
        "is_restored": exact["info"].is_restored,
        "bits_per_step": exact["info"].run.bits_per_step["velocity"],
        "seconds": seconds,
        "temp_bytes": compiled.temp_bytes,
    }
    return record, optax.apply_updates(given.scales, update)


class Journal:
    """The records of one tuning in a file, which is written whole at every meta-step.

    Raises:
      ValueError: the file is of another tuning, or none.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self.records: list[dict[str, Any]] = []
        self._head = {"experiment": "drmad_study", "settings": dict(settings)}
        if not path.exists():
            self._head["environment"] = environment()
            return
        try:
            self._head, *self.records = map(json.loads, path.read_text("utf-8").splitlines())
            theirs = self._head["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no record of a tuning; delete it.") from error
        differ = [name for name in settings if theirs.get(name) != settings[name]]
        if differ:
            raise ValueError(
                f"{path} is of another tuning, which differs in {', '.join(differ)}; name another "
                "folder as out, or delete it to start anew."
            )

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record, which is on the disk on return."""
        self.records.append(plain({"meta_step": len(self.records), **record}))
        lines = [self._head, *self.records]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_whole(self._path, text.encode())


def journal(config: Config, num_steps: int, follow: str, seed: int) -> Journal:
    """Returns the records of a tuning as far as it has come.

    Raises:
      ValueError: what is in their place is of another tuning.
    """
    settings = {name: getattr(config, name) for name in SETTINGS}
    settings |= {"num_steps": num_steps, "follow": follow, "seed": seed}
    name = f"{config.data}_{config.sharing}_{num_steps}_{follow}_{seed}.jsonl"
    return Journal(Path(config.out) / "meta_steps" / name, settings)


def scales_before(given: Start, records: list[dict[str, Any]], meta_step: int) -> Any:
    """Returns the scales that a meta-step starts with, from the records of those before it."""
    if meta_step == 0:
        return given.scales
    values = np.asarray(records[meta_step - 1]["scales_after"], np.float32)
    leaves, treedef = jax.tree.flatten(given.scales)
    parts = np.split(values, np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [jnp.asarray(x.reshape(leaf.shape)) for x, leaf in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def tune(
    config: Config, num_steps: int, follow: str, seed: int, compiled: Any, given: Start, say: Any
) -> None:
    """Takes the meta-steps that are not recorded yet.

    Args:
      config: the settings.
      num_steps: of each training.
      follow: whose signs.
      seed: of `given`.
      compiled: `compiled() -> programs`, called if there is anything to do.
      given: what the seed determines.
      say: called with a line after each meta-step.

    Raises:
      HypergradientError: a hypergradient is not to be had.
      ValueError: the records are of another tuning.
    """
    book = journal(config, num_steps, follow, seed)
    for k in range(len(book.records), config.num_meta_steps):
        scales = scales_before(given, book.records, k)
        record, after = meta_step(config, compiled(), given._replace(scales=scales), follow)
        book.add({**record, "scales_after": flattened(after)})
        last = book.records[-1]
        say(
            f"{num_steps} steps, seed {seed}, following {follow}, meta-step {k}: validation loss "
            f"{last['value']:.4f}, test error {last['test_error']:.2%}, cosine of DrMAD "
            f"{_shown(last['cosine']['DrMAD'])}, of DrMAD2 {_shown(last['cosine']['DrMAD2'])}"
        )


def flattened(tree: Any) -> np.ndarray:
    """Returns a pytree's numbers as one vector, float64."""
    return np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(tree)])


def _hypergradient(
    what: Problem,
    num_steps: int,
    adjoint: hg.Adjoint,
    params: Any,
    scales: Any,
    train: Dataset,
    valid: Dataset,
) -> dict[str, Any]:
    """Returns one hypergradient and what is recorded with it; pure."""
    found = hg.value_and_hypergradient(
        what.objective,
        what.rule,
        params,
        scales,
        train,
        valid,
        num_steps=num_steps,
        batch_fn=what.batch_fn,
        adjoint=adjoint,
    )
    outputs = {"value": found.value, "hypergradient": found.hparams, "info": found.info}
    if isinstance(adjoint, hg.DrMAD | hg.DrMAD2):
        leaves, treedef = jax.tree.flatten(scales)
        are_schedules = (False,) * len(leaves)
        path = Trajectory(what.rule, num_steps, what.batch_fn, are_schedules, treedef, None)
        run = inputs(path, scales, train, None)
        ends = (first_state(path, params, run), found.unrolled.state)
        return outputs | {"reverse_steps": adjoint.num_visited(path, *ends, run)}
    return outputs | {"params": found.unrolled.params}


def _metrics(model: MLP, params: Any, scales: Any, images: Images) -> dict[str, jax.Array]:
    """Returns losses and error rates after a training; pure."""
    weights, judge = hg.hyper.weights_of(params, scales), classification_metrics(model)
    metrics = {}
    for name, part in images._asdict().items():
        measured = judge(weights, part)
        metrics[f"{name}_loss"] = measured["loss"]
        metrics[f"{name}_error"] = 1 - measured["accuracy"]
    return metrics


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"

"""`fit` trains for epochs, on the host: metrics, stopping, a progress bar, checkpoints.

Each epoch is one call of one compiled scan. `unroll` is the same training as one program, to be
differentiated.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from hgrad_jax.adjoints.direct import Direct
from hgrad_jax.data.dataset import num_examples
from hgrad_jax.data.examples import validate_finite
from hgrad_jax.inputs.arguments import prng_key, taken
from hgrad_jax.inputs.functions import positive_int, require_function
from hgrad_jax.runs import validate
from hgrad_jax.runs.trajectory import Trajectory, inputs
from hgrad_jax.tools.digest import digest
from hgrad_jax.training import stopping
from hgrad_jax.training.checkpoints import Checkpoints
from hgrad_jax.training.epoch import EpochHparams, in_epoch, recording, run_epoch, start
from hgrad_jax.training.folder import last_checkpoint
from hgrad_jax.training.interruption import interruptible
from hgrad_jax.training.measure import Measure, require_metrics
from hgrad_jax.training.run import Fit, Run
from hgrad_jax.training.stopping import EarlyStopping, Target
from hgrad_jax.training.store import Store
from hgrad_jax.types import BatchFn, Data, Hparams, Loss, Params, Transition

Metrics = Callable[..., Mapping[str, Any]]
"""`metrics(params, data, *metrics_args) -> {name: scalar}`, pure."""


def _how_to_go_on(checkpoints: Any = None, **others: Any) -> str:
    if not isinstance(checkpoints, Checkpoints):
        return (
            "fit was interrupted, and keeps nothing without a folder; pass checkpoints="
            "hg.Checkpoints(folder), and the same call goes on where it was interrupted."
        )
    done = last_checkpoint(Path(checkpoints.folder))
    if done is None:
        return (
            f"fit was interrupted before it had kept anything in {checkpoints.folder}; begin anew."
        )
    return (
        f"fit was interrupted; {done} epochs are kept in {checkpoints.folder}, and the same call "
        "with that folder goes on from there."
    )


@interruptible(_how_to_go_on)
@jax.disable_jit(False)  # which is for what is called: this compiles ahead
def fit(
    transition: Transition,
    params: Params,
    hparams: Hparams,
    train: Data,
    valid: Data = None,
    *,
    num_epochs: int,
    steps_per_epoch: int | None = None,
    key: jax.Array | None = None,
    batch_fn: BatchFn | None = None,
    hparams_axes: Any = None,
    epoch_hparams: EpochHparams | None = None,
    loss: Loss | None = None,
    metrics: Metrics | None = None,
    metrics_args: tuple[Any, ...] = (),
    train_sample: Data = None,
    early_stopping: EarlyStopping | None = None,
    target: Target | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool | None = None,
) -> Fit:
    """Trains for some epochs, and records how it went.

    The steps and keys are those of `unroll` with a `Run` of as many steps as all epochs have
    together. An epoch is compiled once. The state before an epoch is kept until its end, so that a
    training that becomes infinite or NaN still returns the last good one: two states of memory.

    Args:
      transition: any rule.
      params: initial parameters, a pytree of floating-point arrays.
      hparams: hyperparameters, a pytree of floating-point arrays.
      train: pytree of arrays that batches are made from.
      valid: what the metrics are evaluated on besides; None for the training data alone.
      num_epochs: how many epochs at most, a positive int.
      steps_per_epoch: an epoch's length, after which metrics are evaluated; any positive int. None
        for as many steps as `train` has whole batches of `batch_fn` (the training part of a pair,
        in whole periods, of `online.paired` and `online.periods`), and 1 where that has no
        `batch_size`.
      key: as `unroll`.
      batch_fn: as `Run`.
      hparams_axes: as `Run`; a schedule has one value for each step of all epochs.
      epoch_hparams: `epoch_hparams(hparams, epoch) -> hparams`, pure: what the steps of an epoch,
        an int32 scalar counted from 0, use in place of what is given. For decay per epoch.
      loss: the loss that the rule was made with, to record it for every step's batch, which costs
        next to nothing without dropout, part of a forward pass with it, and all of one where the
        rule averages its parameters, which are those of the record; None not to.
      metrics: `metrics(params, data, *metrics_args) -> {name: scalar}`, pure, evaluated before
        training and after each epoch as train_<name> and valid_<name>; None for none. They must
        stay finite.
      metrics_args: pytrees that `metrics` needs besides, such as the training inputs for batch
        normalization.
      train_sample: what the training metrics are evaluated on; None for all of `train`.
      early_stopping: which metric decides what is best and when to stop.
      target: which metric stops the training when it is good enough.
      checkpoints: where to write them, and to go on from the last one; None for none. In a
        program of several processes all must make the same call, and the first one writes.
      progress: whether to show a bar on standard error; None for whether that is a terminal.

    Returns:
      A `Fit`. A training that became infinite or NaN ends early, and `info` tells.

    Raises:
      ValueError, TypeError: on inputs that do not fit together, on data that are not finite, and on
        parameters or hyperparameters that are NaN, before any step.
      CheckpointError: the last checkpoint is damaged, or of another run; another process uses the
        folder; or it cannot be written.
      Interrupted: Ctrl-C or SIGTERM; the epoch then being run is finished and kept. A second one
        ends at once.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> from hgrad_jax.data import load, shuffled
      >>> from hgrad_jax.models import MLP, classification_loss, classification_metrics
      >>> train, test = load("digits")
      >>> model = MLP((20, 10))
      >>> params = model.init(jax.random.key(0), train.inputs[:1], train=False)["params"]
      >>> loss = classification_loss(model)
      >>> out = hg.fit(
      ...     hg.adam(loss), params, {"learning_rate": 1e-2}, train, test, num_epochs=3,
      ...     batch_fn=shuffled(100, seed=0), loss=loss, metrics=classification_metrics(model),
      ...     epoch_hparams=lambda h, epoch: {"learning_rate": h["learning_rate"] * 0.9**epoch},
      ... )
      >>> out.history.step_loss.shape, bool(out.history.metrics["valid_accuracy"][-1] > 0.8)
      ((42,), True)
    """
    _refuse_traced(params, hparams, train, valid, metrics_args, train_sample, key)
    num_epochs = positive_int("num_epochs", num_epochs)
    (progress,) = taken(progress=progress)
    validate.adjoint_serves(Direct(), transition)
    validate.run_functions(batch_fn, None)
    prng_key("key", key)
    _refuse_settings(loss, metrics, metrics_args, epoch_hparams, checkpoints)
    _refuse_data(train, valid, train_sample, metrics)
    length = _length_of_epoch(steps_per_epoch, train, batch_fn)

    if num_epochs * length >= 2**31:
        raise ValueError(f"num_epochs * steps_per_epoch is {num_epochs * length}, not below 2**31.")

    is_schedule = validate.schedules(hparams, hparams_axes, num_epochs * length)
    trajectory = Trajectory(
        transition if loss is None else recording(transition, loss),
        length,
        batch_fn,
        is_schedule,
        jax.tree.structure(hparams),
        None if loss is None else lambda state, data: state.loss,
    )
    params = validate.floating(params, "params")
    hparams = validate.floating(hparams, "hparams")
    _refuse_nan(params=params, hparams=hparams)
    # Here once for all epochs, and once on the device where the same data serve twice.
    train, valid, train_sample, metrics_args = jax.tree.map(
        jnp.asarray, (train, valid, train_sample, metrics_args)
    )
    parts = {"train": train if train_sample is None else train_sample, "valid": valid}
    parts = {name: data for name, data in parts.items() if metrics and data is not None}
    given = inputs(trajectory, hparams, train, key)
    first = in_epoch(trajectory, epoch_hparams, jnp.int32(0))
    whole = first._replace(num_steps=num_epochs * length)
    validate.step(whole, params, given)
    if hparams_axes is None:
        validate.no_forgotten_schedule(whole, params, hparams, given)
    measure = Measure(metrics and jax.jit(metrics), parts, metrics_args)
    names = measure.names(params)
    stopping.validate(early_stopping, "early_stopping", EarlyStopping, names)
    stopping.validate(target, "target", Target, names)

    state = jax.jit(functools.partial(start, first))(params, given)
    lowered = jax.jit(functools.partial(run_epoch, trajectory, epoch_hparams)).lower(
        state, given, jnp.int32(0)
    )
    run = Run(trajectory, given, lowered.compile(), measure, num_epochs, early_stopping, target)
    if checkpoints is None:
        return run.to_the_end(state, None, progress)
    fingerprint = {
        "params": digest(params),
        "hparams": digest((given.constants, given.schedules)),
        "key": digest(key),
        "train": digest(train),
        "metrics' data": digest((parts, metrics_args)),
        "steps_per_epoch": str(length),
        "early_stopping": str(early_stopping),
        "target": str(target),
        "program (the rule, its loss, batch_fn, epoch_hparams, or JAX's version)": _hash(lowered),
        "metrics": ", ".join(names) + " ".join(map(_hash, measure.lowered(params))),
    }
    with Store(checkpoints, fingerprint, is_shared=True) as store:
        return run.to_the_end(state, store, progress)


def _refuse_traced(*trees: Any) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        raise TypeError("fit cannot run inside jit, grad or vmap; hg.unroll is for that.")


def _refuse_nan(**trees: Any) -> None:
    for name, tree in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if bool(jnp.isnan(leaf).any()):  # infinite ones may be meant: a bound that never acts
                place = jax.tree_util.keystr(path)
                raise ValueError(f"{name}{place} is NaN, and so would be all that is trained.")


def _refuse_settings(
    loss: Any, metrics: Any, metrics_args: Any, epoch_hparams: Any, checkpoints: Any
) -> None:
    if loss is not None:
        require_function(loss, "loss(params, hparams, batch, key)", "that of the rule, or None")
    if epoch_hparams is not None:
        require_function(epoch_hparams, "epoch_hparams(hparams, epoch)", "a function, or None")
    require_metrics(metrics, metrics_args)
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        raise TypeError(f"checkpoints is {checkpoints!r}; pass hg.Checkpoints(folder), or None.")


def _refuse_data(train: Data, valid: Data, train_sample: Data, metrics: Any) -> None:
    for name, data in (("train", train), ("valid", valid), ("train_sample", train_sample)):
        validate_finite(data, name)
        if metrics is None and data is not None and name != "train":
            raise ValueError(
                f"{name} is given, but metrics is None, and nothing would look at it; pass "
                "metrics= (hgrad_jax.models.classification_metrics(model) makes some)."
            )


def _length_of_epoch(steps_per_epoch: Any, train: Data, batch_fn: Any) -> int:
    if steps_per_epoch is None:
        training = getattr(batch_fn, "training", None)
        train, batch_fn, every = (train, batch_fn, 1) if training is None else training(train)
        size = getattr(batch_fn, "batch_size", None)
        # A batch larger than the data is refused by the batch function, in its own words.
        return 1 if size is None else max(num_examples(train) // (size * every), 1)
    return positive_int("steps_per_epoch", steps_per_epoch)


def _hash(lowered: Any) -> str:
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()

"""What the study of DrMAD trains and judges, and the hypergradients that it compares.

Initial weights and batches are those of the first meta-step, since a hyperparameter of a unit means
something only as long as the symmetry between units breaks the same way.
"""

import math
from typing import Any, NamedTuple

import jax

import hgrad_jax as hg
from experiments import rescaled_mlp
from experiments.drmad_study.config import Config
from experiments.rescaled_mlp import Images
from hgrad_jax.data import minibatches
from hgrad_jax.hypergradient import Objective
from hgrad_jax.models import MLP
from hgrad_jax.models.initializers import scaled_normal


class Start(NamedTuple):
    """What a seed determines: the images, the initial z, and the first scales."""

    images: Images
    params: Any
    scales: Any


def make_model(config: Config) -> MLP:
    """Returns the network, a value without parameters."""
    init = scaled_normal(math.exp(config.log_init))
    return rescaled_mlp.make_model(init, init)


def problem(config: Config, num_steps: int, scales: Any) -> tuple[Objective, hg.Run]:
    """Returns the validation loss, and momentum on the training loss with scales like these.

    The images come in the same order in every epoch.
    """
    model = make_model(config)
    rule = hg.momentum(
        rescaled_mlp.training_loss(model, config.log_penalty),
        learning_rate=config.learning_rate,
        momentum=config.momentum,
    )
    axes = jax.tree.map(lambda _: None, scales)  # also where T is a number of units
    batch_fn = minibatches(config.batch_size)
    run = hg.Run(rule, num_steps=num_steps, batch_fn=batch_fn, hparams_axes=axes)
    return rescaled_mlp.validation_loss(model), run


def start(config: Config, seed: int) -> Start:
    """Returns what a seed determines.

    Raises:
      DataUnavailableError: the data are not there.
    """
    images = rescaled_mlp.load_images(config.data, config.data_dir, seed)
    params = rescaled_mlp.initial_params(make_model(config), images, seed)
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

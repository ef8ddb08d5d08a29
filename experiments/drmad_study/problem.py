"""What the study of DrMAD trains and judges, and the hypergradients that it compares.

Initial weights and batches are those of the first meta-step, since a hyperparameter of a unit means
something only as long as the symmetry between units breaks the same way.
"""

import math
from typing import Any, NamedTuple

import hgrad_jax as hg
from experiments import rescaled_mlp
from experiments.drmad_study.config import Config
from experiments.rescaled_mlp import Images
from hgrad_jax.data import minibatches
from hgrad_jax.models import MLP
from hgrad_jax.models.initializers import scaled_normal


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

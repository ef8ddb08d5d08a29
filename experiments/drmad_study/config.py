"""What the study of DrMAD trains, for how long, and where the results go."""

import dataclasses
import math

from experiments import rescaled_mlp
from experiments.common import option

PARTS = ("tuning", "back", "paths")
FOLLOWED = ("DrMAD", "exact")
PATH_DATA = ("digits", "mnist", "cifar10_subset", "cifar10")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of St. Jules (2017, section 3.1), but for the lengths and the data."""

    parts: tuple[str, ...] = option(PARTS, "which parts: tuning, back, paths")
    data: str = option("digits", "images of the meta-steps", tuple(rescaled_mlp.SIZES))
    data_dir: str | None = option(None, "folder with the data sets' original files")
    num_steps: tuple[int, ...] = option((200,), "lengths of training, each studied")
    num_meta_steps: int = option(5, "hypergradients, between which the hyperparameters change")
    seeds: tuple[int, ...] = option((0, 1, 2), "of split and initial weights, each studied")
    follow: tuple[str, ...] = option(FOLLOWED, "whose signs the meta-steps follow")
    sharing: str = option("unit", "a scale s for each output unit, or weight", ("unit", "weight"))
    log_scale: float = option(0.2, "s at the start")
    log_penalty: float = option(-4.0, "logarithm of the L2 coefficient")
    log_init: float = option(-3.0, "logarithm of the initial weights' standard deviation")
    learning_rate: float = option(0.05, "of momentum, positive")
    momentum: float = option(0.95, "decay of the velocity, in [2**-7, 1)")
    batch_size: int = option(50, "examples a step")
    meta_step_size: float = option(0.07, "what a meta-step changes every s by")
    displacement_factor: float = option(10.0, "DrMAD takes so many times fewer steps back")
    path_data: str = option("digits", "images of the paths", PATH_DATA)
    path_steps: int = option(300, "training steps of the paths")
    path_batch_size: int = option(20, "its examples a step, at most 1,000")
    path_learning_rate: float = option(0.005, "of the conv net, positive")
    path_l2: float = option(0.02, "its L2 coefficient, positive")
    out: str = option("results/drmad_study", "folder for records and figures")

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 20), ("seeds", 0)):
            for value in getattr(self, name):
                if value < least:
                    raise ValueError(f"{name} has {value}; it must be at least {least}.")
        leasts = {"num_meta_steps": 1, "path_steps": 20, "batch_size": 1, "path_batch_size": 1}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        for name in (
            "learning_rate",
            "meta_step_size",
            "displacement_factor",
            "path_learning_rate",
            "path_l2",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        if not 2**-7 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be in [2**-7, 1).")
        if self.path_batch_size > 1000:
            raise ValueError(
                f"path_batch_size is {self.path_batch_size}; the digits' paths have "
                "1,078 images: take at most 1,000."
            )
        num_train = rescaled_mlp.SIZES[self.data][0]
        if self.batch_size > num_train:
            raise ValueError(
                f"batch_size is {self.batch_size}, but there are {num_train} training images."
            )
        for name, allowed in (("parts", PARTS), ("follow", FOLLOWED)):
            for value in getattr(self, name):
                if value not in allowed:
                    raise ValueError(f"{name} has {value!r}; choose from {', '.join(allowed)}.")
        for name in ("num_steps", "seeds", "follow"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; it must not name one twice.")

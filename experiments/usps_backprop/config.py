"""Which nets `usps_backprop` trains, with which settings, and where the results go."""

import dataclasses
import math

from experiments.common import option


@dataclasses.dataclass(frozen=True)
class Config:
    """The net, the settings of its training, and where the results go."""

    data: str = option("digits", "8x8 digits from the library, or USPS files", ("digits", "usps"))
    data_dir: str | None = option(None, "folder with the USPS files")
    num_hidden: int = option(10, "logistic hidden units")
    learning_rates: tuple[float, ...] = option((0.002, 0.01, 0.05, 0.2, 1, 5, 20), "learning rates")
    momenta: tuple[float, ...] = option((0.0, 0.9), "with each of these momenta, in [0, 1)")
    weight_decays: tuple[float, ...] = option((0.0,), "and each of these weight decays, at least 0")
    num_steps: int = option(70, "training steps")
    batch_size: int = option(4, "examples a step")
    early_stopping: bool = option(
        False, "measure at the step of least validation loss, not at the end"
    )
    x64: bool = option(False, "compute in 64 bits")
    out: str = option("results/usps_backprop", "folder for result.jsonl and figures")

    def __post_init__(self):
        for name in ("num_hidden", "num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive.")
        for name, least, bound in (
            ("learning_rates", 0, math.inf),
            ("momenta", 0, 1),
            ("weight_decays", 0, math.inf),
        ):
            values = getattr(self, name)
            if not all(least <= value < bound for value in values):
                raise ValueError(f"{name} are {values}; they must be in [{least}, {bound}).")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} are {values}; give each once.")

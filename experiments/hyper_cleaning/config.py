"""What data hyper-cleaning corrupts and trains, and how it tunes the examples' weights."""

import dataclasses

from experiments.common import option

SIZES = {"digits": (500, 500), "mnist": (5000, 5000)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is corrupted and trained, and how the weights are tuned."""

    data: str = option("digits", "the data set", tuple(SIZES))
    data_dir: str | None = option(None, "folder with MNIST's original files")
    out: str = option("results/hyper_cleaning", "folder for records and figures")
    seeds: tuple[int, ...] = option((0,), "of division, corruption and training; one run for each")
    num_train: int | None = option(None, "training examples (default: 500 digits, 5000 of MNIST)")
    num_valid: int | None = option(None, "validation examples (default: as many of them)")
    corrupted: float = option(0.5, "fraction of training labels replaced, in (0, 1)")
    hidden: int = option(0, "tanh units of a hidden layer; 0 for softmax regression")
    batch_fraction: float = option(0.1, "of the training examples, in a step's batch, in (0, 1]")
    num_steps: int = option(200, "training steps in a meta-step")
    learning_rate: float = option(0.5, "of momentum")
    momentum: float = option(0.9, "decay of the velocity, in (0, 1)")
    num_meta_steps: int = option(30, "steps of the tuning")
    meta_learning_rate: float = option(0.1, "Adam's, of the weights")
    l1_radius: float | None = option(None, "most that the weights may sum to (default: any sum)")
    threshold: float = option(0.5, "examples with a smaller weight are found, in (0, 1]")
    num_final_steps: int = option(2000, "steps of the trainings whose accuracy is reported")
    compare: bool = option(True, "tune by stored and by approximate hypergradients too")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and field.name != "hidden" and not value > 0:
                raise ValueError(f"{field.name} is {value}; it must be positive.")
        for name in ("corrupted", "momentum"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be below 1.")
        for name in ("batch_fraction", "threshold"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at most 1.")
        if self.hidden < 0:
            raise ValueError(f"hidden is {self.hidden}; it must be at least 0.")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ValueError(f"seeds are {self.seeds}; each must be in [0, 2**32).")

    @property
    def sizes(self) -> tuple[int, int]:
        """How many training and validation examples there are."""
        num_train, num_valid = SIZES[self.data]
        return self.num_train or num_train, self.num_valid or num_valid

    @property
    def batch_size(self) -> int:
        """Examples of a training step."""
        return max(1, round(self.batch_fraction * self.sizes[0]))

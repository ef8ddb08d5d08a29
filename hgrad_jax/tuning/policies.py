"""What happens to a hypergradient that cannot be used: not finite, not restored, not solved for."""

import dataclasses

from hgrad_jax.inputs.functions import positive_int


@dataclasses.dataclass(frozen=True)
class Stop:
    """Stops at the first one with a TuningError, which tells the cause and has what was tuned."""


@dataclasses.dataclass(frozen=True)
class Skip:
    """Leaves hyperparameters and optimizer as they are, with a RuntimeWarning and a record.

    Where seeds, splits and lengths are the same in every meta-step, the next one would fail too.

    Attributes:
      at_most: so many meta-steps in a row; one more stops as `Stop` does.
    """

    at_most: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "at_most", positive_int("at_most", self.at_most))

"""What a gradient check found: derivatives beside references, and the verdict on them."""

from typing import NamedTuple

import numpy as np

from hgrad_jax.check import HypergradientError
from hgrad_jax.diagnostics.rounding import Rounding
from hgrad_jax.show.text_table import aligned


class Entry(NamedTuple):
    """A derivative under test beside a reference.

    Attributes:
      path: the leaf, as in "hparams['momentum']".
      position: index of the number in the leaf; None for the derivative along a random direction.
      gradient: the derivative under test.
      reference: the central difference; along a direction, the derivative by forward mode.
      uncertainty: estimate of the reference's own error.
      relative_error: |gradient - reference| over the larger of the two, or where both are tiny over
        1e-3 times the leaf's largest, or over what rounding to float64 leaves.
      step: h of the difference; None along a direction.
      is_wrong: the error exceeds the tolerance, and the uncertainty does not explain it.
      is_unreliable: the error exceeds the tolerance, but the uncertainty explains it.
    """

    path: str
    position: tuple[int, ...] | None
    gradient: float
    reference: float
    uncertainty: float
    relative_error: float
    step: float | None
    is_wrong: bool
    is_unreliable: bool

    @property
    def name(self) -> str:
        """What the derivative is by."""
        if self.position is None:
            return f"{self.path} along v"
        return self.path + (str(list(self.position)) if self.position else "")


class GradientReport(NamedTuple):
    """What a gradient check found. Prints as a table.

    Attributes:
      entries: one per sampled number, against differences.
      directions: one per leaf, against forward mode; empty where that is not possible.
      why_no_directions: the reason, else None.
      trouble: what `hg.check` says of the adjoint's own run; None if it is in order.
      rounding: how far rounding moves each leaf of a hypergradient, the furthest first. It does not
        count for `is_ok`: a derivative may be right and yet be worth little in float32.
      epsilon: of the narrowest floats that the function computes in, 2.2e-16 of float64.
    """

    entries: tuple[Entry, ...]
    directions: tuple[Entry, ...]
    why_no_directions: str | None
    trouble: str | None = None
    rounding: tuple[Rounding, ...] = ()
    epsilon: float = float(np.finfo(np.float64).eps)

    @property
    def worst(self) -> Entry:
        """The entry with the greatest relative error, of the wrong ones, else of the reliable."""
        return max(
            self.entries + self.directions,
            # Differences first: they say which number it is.
            key=lambda e: (
                e.is_wrong,
                not e.is_unreliable,
                e.position is not None,
                e.relative_error,
            ),
        )

    @property
    def is_ok(self) -> bool:
        """Whether the run is in order, some difference was reliable, and nothing is wrong."""
        return self._complaint() is None

    def raise_if_wrong(self) -> "GradientReport":
        """Returns the report itself if it is ok.

        Raises:
          HypergradientError: it is not; the message names the worst entry.
        """
        complaint = self._complaint()
        if complaint is not None:
            raise HypergradientError(complaint)
        return self

    def _complaint(self) -> str | None:
        worst = self.worst
        if self.trouble is not None:
            return self.trouble
        if worst.is_wrong:
            by = "forward mode gives" if worst.position is None else "differences give"
            wrong = sum(e.is_wrong for e in self.entries)
            hint = "look for a hand-written derivative on its way"
            if worst.position is not None and self._is_confirmed(worst.path):
                hint += (
                    ", or for what bends within a step (Adam with a small eps), as forward mode "
                    "agrees with it, and pass a smaller step"
                )
            return (
                f"the derivative by {worst.name} is {worst.gradient:.9g}, but {by} "
                f"{worst.reference:.9g} +- {worst.uncertainty:.0e} ({wrong} of "
                f"{len(self.entries)} entries are wrong); {hint}, unless the adjoint is an "
                "approximation."
            )
        if all(e.is_unreliable for e in self.entries):
            way_out = (
                "pass a smaller step, or check where the function is smooth"
                if self.epsilon <= np.finfo(np.float64).eps
                else f"the function computes in floats with an epsilon of {self.epsilon:.0e}: "
                "leave out its casts, so that all of it runs in float64"
            )
            return f"no difference was reliable, by {self.entries[0].name} for one; {way_out}."
        return None

    def _is_confirmed(self, path: str) -> bool:
        """Returns whether forward mode agrees with the gradient in this leaf."""
        along = [e for e in self.directions if e.path == path]
        return any(not e.is_wrong and not e.is_unreliable for e in along)

    def __str__(self) -> str:
        rows = [["derivative by", "gradient", "reference", "+-", "error", "step", ""]]
        for e in self.entries + self.directions:
            numbers = [f"{x:.9g}" for x in (e.gradient, e.reference)]
            errors = [f"{x:.0e}" for x in (e.uncertainty, e.relative_error)]
            step = "forward" if e.step is None else f"{e.step:.0e}"
            verdict = "WRONG" if e.is_wrong else "unreliable" if e.is_unreliable else "ok"
            rows.append([e.name, *numbers, *errors, step, verdict])
        wrong = sum(e.is_wrong for e in self.entries)
        unreliable = sum(e.is_unreliable for e in self.entries)
        lines = [f"{len(self.entries)} entries, {wrong} wrong, {unreliable} unreliable"]
        if self.why_no_directions is not None:
            lines.append(f"no forward mode: {self.why_no_directions}")
        if self.trouble is not None:
            lines.append(f"trouble: {self.trouble}")
        if self.rounding:
            label = "ill-conditioned: " if self.rounding[0].is_ill_conditioned else ""
            lines.append(f"{label}{self.rounding[0]}")
        return "\n".join(aligned(rows, left=(0, -1)) + lines)

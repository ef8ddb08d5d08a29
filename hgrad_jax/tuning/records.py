"""The folder of a tuning: a line of JSON a meta-step, figures, checkpoints; each file whole always.

A file is written beside its place and moved there, so that whoever reads it, at any moment and
after any kill, finds the old one or the new one.
"""

import dataclasses
import functools
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hgrad_jax.inputs.arguments import take_fields
from hgrad_jax.inputs.functions import positive_int
from hgrad_jax.many import processes
from hgrad_jax.tools.files import write_whole
from hgrad_jax.training.checkpoints import Checkpoints, require_path
from hgrad_jax.training.folder import CheckpointError, told

LINES = "meta_steps.jsonl"
TUNING, EVERY = "tuning", "checkpoint_every"


@dataclasses.dataclass(frozen=True)
class Records:
    """Where `tune` writes what it finds; it goes on from the last checkpoint it finds there.

    In the folder are `meta_steps.jsonl`, `value.png`, `hypergradient.png`, `hparams.png` and
    `checkpoints/`. A tuning that was killed at any moment and is started again with the same
    arguments ends with the same bits as one that never was, on the same machine and versions.
    `num_meta_steps` alone may be larger than before, and what is here may be any: it changes no
    result.

    Attributes:
      folder: of this tuning alone; made if need be.
      every: meta-steps between two checkpoints.
      keep: how many of the last ones stay.
      figures_every: meta-steps between two drawings, which take half a second; they are drawn at
        the end too. None for no figures. They need matplotlib.
      is_whole: whether a line has all hyperparameters and the whole mean hypergradient, not only
        their summaries.
    """

    folder: str | os.PathLike[str]
    every: int = 1
    keep: int = 2
    figures_every: int | None = 10
    is_whole: bool = False

    def __post_init__(self) -> None:
        require_path(self.folder)
        take_fields(self)
        with told(Path(self.folder)):
            is_file = Path(self.folder).exists() and not Path(self.folder).is_dir()
        if is_file:
            raise ValueError(f"folder is {str(self.folder)!r}, which is a file; name a folder.")
        checkpoints = self.checkpoints()
        object.__setattr__(self, "every", checkpoints.every)
        object.__setattr__(self, "keep", checkpoints.keep)
        if self.figures_every is None:
            return
        figures_every = positive_int("figures_every", self.figures_every, ", or None")
        object.__setattr__(self, "figures_every", figures_every)
        if importlib.util.find_spec("matplotlib") is None:
            raise ValueError(
                "figures need matplotlib, which is not installed; install it, or pass "
                "Records(..., figures_every=None)."
            )

    def is_to_draw(self, num_done: int) -> bool:
        """Returns whether there are to be figures after so many meta-steps."""
        return self.figures_every is not None and num_done % self.figures_every == 0

    def checkpoints(self) -> Checkpoints:
        """Returns where the checkpoints are."""
        return Checkpoints(Path(self.folder) / "checkpoints", self.every, self.keep)


class Lines:
    """The lines of JSON.

    Args:
      choice: where.
      tuning: a digest of the tuning's configuration, which every line names.
      num_done: meta-steps of the checkpoint that the tuning goes on from. What was written after
        it is written again.
      is_shared: whether several processes tune together, of which the first writes.

    Raises:
      CheckpointError: the lines in the folder are not those of the checkpoint.
    """

    def __init__(
        self, choice: Records, tuning: str, num_done: int, is_shared: bool = False
    ) -> None:
        self._path, self._tuning = Path(choice.folder) / LINES, tuning
        self._checkpoints = Path(choice.checkpoints().folder)
        self._every = choice.every
        self._is_writer = not is_shared or processes.is_first()
        found = processes.from_first(functools.partial(self._read, choice, num_done), is_shared)
        self._lines = found[:num_done]
        if len(found) > num_done:
            self._write()

    def _read(self, choice: Records, num_done: int) -> list[str]:
        with told(self._checkpoints):
            raw = self._path.read_bytes() if self._path.exists() else b""
        # Bytes that are no text are in no line of ours, which is then no JSON or another one.
        text = raw.decode(errors="replace")
        found = text.splitlines()
        # A kill leaves no more than those since the last checkpoint, as often as those were then.
        every = max([choice.every, *(_number_in(line, EVERY) or 0 for line in found[num_done:])])
        is_ours = num_done <= len(found) <= num_done + every
        numbers = [_number_in(line, "meta_step") for line in found]
        if not is_ours or numbers != list(range(len(found))):
            raise CheckpointError(
                f"{self._path} has {len(found)} lines, and is not the record of a tuning of which "
                f"{num_done} meta-steps are in checkpoints beside it; name another folder, or "
                "delete this one to start anew."
            )
        if any(json.loads(line).get(TUNING) != self._tuning for line in found):
            raise CheckpointError(
                f"{self._path} is the record of another tuning; name another folder, or delete "
                "this one to start anew."
            )
        return found

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a line, which is on the disk on return."""
        line = {**record, EVERY: self._every, TUNING: self._tuning}
        self._lines.append(json.dumps(plain(line), allow_nan=False))
        self._write()

    def _write(self) -> None:
        if not self._is_writer:
            return
        with told(self._checkpoints):
            write_whole(self._path, "".join(f"{line}\n" for line in self._lines).encode())


def plain(value: Any) -> Any:
    """Returns what JSON can hold: arrays as lists, and None for what is infinite or NaN.

    >>> plain({"a": np.array([1.0, np.nan]), "b": (True, None)})
    {'a': [1.0, None], 'b': [True, None]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return plain(np.asarray(value).tolist())


def _number_in(line: str, name: str) -> int | None:
    """Returns an integer of a line; None if it has none, or is none of ours."""
    try:
        found = json.loads(line)[name]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None

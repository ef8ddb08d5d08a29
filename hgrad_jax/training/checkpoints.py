"""Where a training writes its checkpoints, and how often."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from hgrad_jax.inputs.functions import positive_int


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and how often `fit` writes checkpoints; it goes on from the last one it finds there.

    A run that was killed at any moment and is started again with the same arguments ends with the
    same bits as one that never was, on the same machine and versions. `num_epochs` alone may be
    larger than before: a run is lengthened so. The last epoch of a call is always written,
    also where Ctrl-C or SIGTERM makes it the last. One process at a time uses a folder; a second
    one is refused.

    Attributes:
      folder: of this run alone; made if need be.
      every: epochs between two checkpoints.
      keep: how many of the last ones stay.
    """

    folder: str | os.PathLike[str]
    every: int = 1
    keep: int = 2

    def __post_init__(self) -> None:
        require_path(self.folder)
        for name in ("every", "keep"):
            object.__setattr__(self, name, positive_int(name, getattr(self, name)))
        for path in (Path(self.folder), *Path(self.folder).parents):
            if path.is_file():
                is_itself = path == Path(self.folder)
                raise ValueError(
                    f"folder is {str(self.folder)!r}, which is {'' if is_itself else 'under '}a "
                    "file; name a folder."
                )


def require_path(folder: Any) -> None:
    """Raises if a folder is no path.

    Raises:
      TypeError: it is something else, such as None.
    """
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder is {folder!r}; name a folder by a str or a pathlib.Path.")

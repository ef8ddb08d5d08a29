"""The records of the study of DrMAD: files of JSON lines, the first of which says what of.

From them a tuning goes on where it was killed, with the same bits.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common import environment
from experiments.drmad_study.config import Config
from hgrad_jax.tools.files import write_whole
from hgrad_jax.tuning.records import plain

# What a tuning depends on; a longer one goes on from a shorter one.
SETTINGS = (
    *("data", "sharing", "log_scale", "log_penalty", "log_init", "learning_rate", "momentum"),
    *("batch_size", "meta_step_size", "displacement_factor"),
)


class Journal:
    """The records of one tuning in a file, which is written whole at every meta-step.

    Raises:
      ValueError: the file is of another tuning, or none.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self.records: list[dict[str, Any]] = []
        self._head = {"experiment": "drmad_study", "settings": dict(settings)}
        if not path.exists():
            self._head["environment"] = environment()
            return
        try:
            self._head, *self.records = map(json.loads, path.read_text("utf-8").splitlines())
            theirs = self._head["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no record of a tuning; delete it.") from error
        differ = [name for name in settings if theirs.get(name) != settings[name]]
        if differ:
            raise ValueError(
                f"{path} is of another tuning, which differs in {', '.join(differ)}; name another "
                "folder as out, or delete it to start anew."
            )

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record, which is on the disk on return."""
        self.records.append(plain({"meta_step": len(self.records), **record}))
        lines = [self._head, *self.records]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_whole(self._path, text.encode())


def journal(config: Config, num_steps: int, follow: str, seed: int) -> Journal:
    """Returns the records of a tuning as far as it has come.

    Raises:
      ValueError: what is in their place is of another tuning.
    """
    settings = {name: getattr(config, name) for name in SETTINGS}
    settings |= {"num_steps": num_steps, "follow": follow, "seed": seed}
    name = f"{config.data}_{config.sharing}_{num_steps}_{follow}_{seed}.jsonl"
    return Journal(Path(config.out) / "meta_steps" / name, settings)

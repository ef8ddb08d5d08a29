"""Checkpoints of a training, from which it goes on bit for bit; written by orbax, atomically.

A checkpoint holds the state, the best parameters, the history, a fingerprint of the run, and a
digest of all that; beside what orbax wrote are the hashes of its files, so that none that is
damaged is ever parsed. Orbax is imported when a checkpoint is written or sought.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hgrad_jax.many import processes
from hgrad_jax.tools.files import write_whole
from hgrad_jax.training.checkpoints import Checkpoints
from hgrad_jax.training.folder import CheckpointError, last_checkpoint, locked, told, unusable
from hgrad_jax.training.snapshot import Snapshot, digest_of, named_leaves, restored
from hgrad_jax.types import Params, State

FORMAT = 2
HASHES = "sha256.json"


class Store:
    """The checkpoints of one run in a folder. Close it, or use it in a `with` statement.

    Args:
      choice: where.
      fingerprint: of the run.
      is_shared: whether all processes of the program have this run, of which the first alone
        touches the folder; False where each has its own.

    Raises:
      ValueError: the processes have different runs.
      CheckpointError: another process uses the folder, or it cannot be used.
    """

    def __init__(
        self, choice: Checkpoints, fingerprint: Mapping[str, str], is_shared: bool = False
    ) -> None:
        self.folder: Path = Path(choice.folder).absolute()
        self.every: int = choice.every
        self._fingerprint = dict(fingerprint)
        self._is_shared = is_shared
        if is_shared:
            processes.require_same(fingerprint)
        self._manager = None
        self._opened = contextlib.ExitStack()
        if is_shared:
            processes.from_first(lambda: self._open(choice.keep))
        else:
            self._open(choice.keep)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def _open(self, keep: int) -> None:
        with contextlib.ExitStack() as opened:
            opened.enter_context(locked(self.folder))
            last = last_checkpoint(self.folder)
            if last is not None:
                self._require_whole(last)
            try:
                self._manager = _manager(self.folder, keep)
            except Exception as error:  # it parses what is there
                raise unusable(self.folder, error) from error
            opened.callback(self._manager.close)
            self._opened = opened.pop_all()

    def run(self) -> str:
        """Returns a digest of the fingerprint."""
        return hashlib.sha256(json.dumps(self._fingerprint, sort_keys=True).encode()).hexdigest()

    def write(self, epoch: int, snapshot: Snapshot) -> None:
        """Writes the checkpoint of an epoch; on return it is on the disk, whole.

        Raises:
          CheckpointError: the folder cannot be written; those before are whole.
        """
        if self._manager is None:
            return
        import orbax.checkpoint as ocp

        names = list(snapshot.metrics)
        arrays = {"metrics": np.asarray([snapshot.metrics[name] for name in names])}
        arrays |= named_leaves("state", snapshot.state) | named_leaves("best", snapshot.best)
        if snapshot.step_loss:
            arrays["step_loss"] = np.stack(snapshot.step_loss)
        about = {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "metrics": names,
        }
        about["digest"] = digest_of(about, arrays)
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
        )
        try:
            self._manager.save(epoch, args=args)
            self._manager.wait_until_finished()
            step = self.folder / str(epoch)
            write_whole(step / HASHES, json.dumps(_hashes(step), sort_keys=True).encode())
        except Exception as error:  # what writes in C++ has errors of its own for a full disk
            raise unusable(self.folder, error) from error

    def read(self, state: State, params: Params) -> Snapshot | None:
        """Returns the last checkpoint, or None if there is none.

        Args:
          state: the run's first state, whose structure and placement the one read gets.
          params: the same of its parameters.

        Raises:
          CheckpointError: it is damaged, or of another run.
        """
        found = processes.from_first(self._last, self._is_shared)
        if found is None:
            return None
        about, arrays = found
        has_best = any(name.startswith("best.") for name in arrays)
        values = np.asarray(arrays["metrics"])
        return Snapshot(
            restored("state", arrays, state),
            restored("best", arrays, params) if has_best else None,
            dict(zip(about["metrics"], values.tolist(), strict=True)),
            list(np.asarray(arrays["step_loss"])) if "step_loss" in arrays else [],
        )

    def _last(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns the last checkpoint, if there is one, of this run."""
        assert self._manager is not None
        with told(self.folder):
            epoch = self._manager.latest_step()
        if epoch is None:
            return None
        about, arrays = self._load(epoch)
        theirs = about["fingerprint"]
        differ = [name for name in theirs | self._fingerprint if not self._is_same(name, theirs)]
        if differ:
            raise CheckpointError(
                f"the checkpoints in {self.folder} are of another run, which differs in "
                f"{', '.join(differ)}; name another folder, or delete this one to start anew."
            )
        return about, {name: np.asarray(array) for name, array in arrays.items()}

    def _is_same(self, name: str, theirs: Mapping[str, str]) -> bool:
        return theirs.get(name) == self._fingerprint.get(name)

    def _load(self, epoch: int) -> tuple[dict[str, Any], dict[str, Any]]:
        import orbax.checkpoint as ocp

        assert self._manager is not None
        try:
            found = self._manager.restore(
                epoch,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(), about=ocp.args.JsonRestore()
                ),
            )
            about, arrays = found["about"], found["arrays"]
            if about["format"] != FORMAT:
                raise ValueError(f"its format is {about['format']}, not {FORMAT}")
            theirs = about.pop("digest")
            problem = None if digest_of(about, arrays) == theirs else "its digest is another"
        except Exception as error:  # whatever a reader makes of bytes that make no sense
            about, arrays = {}, {}
            problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if problem is not None:
            raise self._damaged(epoch, problem)
        return about, arrays

    def _require_whole(self, epoch: int) -> None:
        """Raises if a file of a checkpoint is not the one that was written; before orbax sees any.

        Orbax reads files side by side: after the first error the other reads would go on in a loop
        that is closed, and say so where nobody asked. A kill right after orbax has finished leaves
        no hashes; then the digest of the whole alone is compared.

        Raises:
          CheckpointError: it is not.
        """
        step = self.folder / str(epoch)
        try:
            problem = _difference(step) if (step / HASHES).exists() else None
        except (OSError, ValueError) as error:
            problem = f"{HASHES} cannot be read: {type(error).__name__}"
        if problem is not None:
            raise self._damaged(epoch, problem)

    def _damaged(self, epoch: int, problem: str) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint {self.folder / str(epoch)} is damaged ({problem}); delete it to go on "
            "from the one before, or the whole folder to start anew."
        )


def _manager(folder: Path, keep: int) -> Any:
    """Returns orbax's manager, which waits for no other process."""
    import orbax.checkpoint as ocp

    process = jax.process_index()
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=False,
        create=False,  # which is a meeting of all
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=process,
            active_processes={process},
            barrier_sync_key_prefix=f"process_{process}",
        ),
    )
    return ocp.CheckpointManager(folder, options=options)


def _hashes(step: Path) -> dict[str, str]:
    """Returns a hash of each file of a checkpoint by its path there."""
    return {
        path.relative_to(step).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(step.rglob("*"))
        if path.is_file() and path.name != HASHES
    }


def _difference(step: Path) -> str | None:
    """Returns which file of a checkpoint is not the one that was written; None if all are."""
    wanted, found = json.loads((step / HASHES).read_bytes()), _hashes(step)
    if not isinstance(wanted, dict):
        return f"{HASHES} holds no hashes"
    differ = [name for name in wanted if wanted[name] != found.get(name)]
    if not differ:
        return None
    return f"its file {differ[0]} is {'another' if differ[0] in found else 'missing'}"

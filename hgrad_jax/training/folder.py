"""A run's folder: one process at a time, and a sentence where it cannot be read or written."""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from hgrad_jax.tools.files import PLAIN

LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
LOCKS_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class CheckpointError(RuntimeError):
    """A run's folder cannot be used; the message says why, and what to do.

    A checkpoint in it is damaged or of another run, another process is using it, or it cannot be
    written, as on a full disk; then the cause is the OSError.
    """


def last_checkpoint(folder: Path) -> int | None:
    """Returns the number of the last whole checkpoint in a folder of checkpoints, None of none.

    What is not whole yet has another name.
    """
    try:
        steps = [int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir()]
    except OSError:
        return None
    return max(steps, default=None)


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turns what goes wrong in the file system into a sentence on a folder of checkpoints.

    Raises:
      CheckpointError: from the OSError.
    """
    try:
        yield
    except OSError as error:
        raise unusable(folder, error) from error


def unusable(folder: Path, error: Exception) -> CheckpointError:
    """Returns the error that says why a folder cannot be used, what is safe, and the way out."""
    why, do = _why(error)
    last = last_checkpoint(folder)
    kept = (
        "no checkpoint has been written there yet"
        if last is None
        else f"checkpoint {last} is whole, and the same call goes on from it"
    )
    return CheckpointError(f"the folder {folder} cannot be used: {why}; {kept}. {do}")


def _why(error: Exception) -> tuple[str, str]:
    number = error.errno if isinstance(error, OSError) else None
    if number is None:  # a library that writes in C++ has the system's words alone
        number = next((n for n in (*FULL, *FORBIDDEN) if os.strerror(n) in str(error)), None)
    if number in FULL:
        return "the disk is full", "Make room, or name another folder."
    if number in FORBIDDEN:
        return (
            "it may not be written",
            "Give this user the permission to write there, or name another folder.",
        )
    if number in NOT_A_FOLDER:
        return "a file is in its way", "Name another folder, or move that file."
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}", "Mend that, or name another folder."


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a folder for this process while the context lasts; the folder is made if need be.

    The system frees the lock with the process that has it, however that ends: one that died never
    blocks, though its file `.lock`, in which its number is, may stay. A folder that may only be
    read is read without a lock.

    Raises:
      CheckpointError: another process has it, or the folder cannot be used.
    """
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = _opened_and_locked(folder)
    if file is None:
        yield
        return
    _HELD.add(file)
    try:
        with contextlib.suppress(OSError):  # the number is for the message alone
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            (folder / LOCK).unlink()
        _HELD.discard(file)
        os.close(file)


def _opened_and_locked(folder: Path) -> int | None:
    """Returns the open file of the lock; None where the folder may only be read."""
    while True:
        try:
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | PLAIN, 0o666)
        except OSError as error:
            if error.errno not in FORBIDDEN:
                raise
            return None
        try:
            _lock(file, folder)
            # Who had it may have removed it since it was opened; then it locks nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(folder / LOCK)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    try:
        _try_lock(file)
    except OSError as error:
        if error.errno in LOCKS_UNKNOWN:
            warnings.warn(
                f"the file system of {folder} has no locks, so that nothing keeps a second process "
                "out; start only one in this folder.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            raise unusable(folder, error) from error
        pid = os.pread(file, 20, 0).decode(errors="replace").strip()
        who = f"process {pid}" if pid.isdecimal() else "another process"
        if pid == str(os.getpid()):
            who = f"this process, {pid}, by another call"
        raise CheckpointError(
            f"the folder {folder} is in use by {who}; wait until it ends, stop it, or name "
            "another folder."
        ) from None


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: int) -> None:
        # Beyond the number, which others may then read.
        os.lseek(file, 2**30, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD: set[int] = set()


def _forget() -> None:
    """A child by fork shares the lock, and would keep it longer than its parent lives."""
    for file in _HELD:
        os.close(file)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

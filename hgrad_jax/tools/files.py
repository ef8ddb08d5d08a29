"""Files that are written whole or not at all, and lines that are added to a file.

No name of a temporary file can be guessed, none that exists is opened, and no symbolic link is
written through: whoever else can write to the folder cannot direct a write to another file.
"""

import contextlib
import io
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Absent on Windows, where symbolic links need a privilege and files are else opened as text.
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
PLAIN = NOFOLLOW | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file in one move: it is the old one or the new one, and never a part.

    Raises:
      OSError: it could not be written; what was there before is there still, and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, 0o666)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Appends a line to a file, which is on the disk on return; file and folder are made.

    Raises:
      OSError: it could not be written, or the file is a symbolic link.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | PLAIN, 0o666)
    with os.fdopen(file, "ab") as stream:
        stream.write(f"{line}\n".encode())
        stream.flush()
        os.fsync(stream.fileno())


def write_figures(
    folder: str | os.PathLike[str], figures: Mapping[str, Any], dpi: int = 100
) -> None:
    """Writes matplotlib figures as NAME.png, each whole."""
    for name, figure in figures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=dpi)
        write_whole(Path(folder) / f"{name}.png", image.getvalue())


def _sync_folder(folder: Path) -> None:
    """Puts the folder's names on the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

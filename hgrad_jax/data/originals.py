"""The original files of a data set, verified by sha256: given, cached, or downloaded.

A file is looked for in this order, and the first one found must be the original:

1. in `data_dir`, or else in the folder that the environment variable `HGRAD_JAX_DATA_DIR` names,
   directly or in a sub-folder with the data set's name;
2. in this library's cache, `$XDG_CACHE_HOME/hgrad_jax` (`~/.cache/hgrad_jax`);
3. at its publisher's, through tensorflow-datasets' download manager; it then lies in the cache
   under its original name, and tensorflow-datasets is not imported again.

Nothing is prepared through tensorflow-datasets' builders: these need TensorFlow, and shuffle.
"""

import hashlib
import os
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from hgrad_jax.inputs.arguments import taken

DATA_DIR_VARIABLE = "HGRAD_JAX_DATA_DIR"
PROBE_SECONDS = 5.0


class DataUnavailableError(RuntimeError):
    """A data set's original files are neither here nor to be had; the message says what to do."""


class OriginalFile(NamedTuple):
    """A published file: its name, and the sha256 of its bytes in hexadecimal."""

    name: str
    sha256: str


class Source(NamedTuple):
    """Where a data set's original files come from.

    Attributes:
      name: the data set's name, used in messages.
      folder: the sub-folder of `data_dir` and of the cache that holds the files.
      base_url: what a file's name is appended to, ending in a slash; None if there is no download.
      files: the original files.
    """

    name: str
    folder: str
    base_url: str | None
    files: tuple[OriginalFile, ...]


def fetch(
    source: Source, *, data_dir: str | os.PathLike[str] | None = None, download: bool = True
) -> list[Path]:
    """Returns the paths of the verified original files, in the order of `source.files`.

    Args:
      source: the files and their sums.
      data_dir: a folder to look into first; None for the one that HGRAD_JAX_DATA_DIR names.
      download: whether missing files may be downloaded into the cache.

    Returns:
      One path a file. Its bytes had the right sum just now.

    Raises:
      DataUnavailableError: `data_dir` is not a folder; a file is damaged; or it is missing and
        cannot be, or may not be, downloaded. Without a network this takes `PROBE_SECONDS`.
    """
    (download,) = taken(download=download)
    folders = [*_given_folders(source, data_dir), _cache_folder(source)]
    found = {file: _find(file, folders) for file in source.files}
    missing = [file for file, path in found.items() if path is None]
    for file, path in found.items():
        if path is not None:
            _verify(path, file, source)
    if missing:
        _download(source, missing, folders, download)
    return [path or _cache_folder(source) / file.name for file, path in found.items()]


def _given_folders(source: Source, data_dir: str | os.PathLike[str] | None) -> list[Path]:
    given = data_dir if data_dir is not None else os.environ.get(DATA_DIR_VARIABLE)
    if not isinstance(given, str | os.PathLike | None):
        raise TypeError(f"data_dir is {given!r}; name a folder by a str or a pathlib.Path.")
    if not given:
        return []
    folder = Path(given).expanduser()
    if not folder.is_dir():
        argument = "data_dir" if data_dir is not None else DATA_DIR_VARIABLE
        raise DataUnavailableError(f"{argument} is {folder}, which is not a folder.")
    return [folder / source.folder, folder]


def _cache_folder(source: Source) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "hgrad_jax" / source.folder


def _find(file: OriginalFile, folders: list[Path]) -> Path | None:
    paths = (folder / file.name for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _verify(path: Path, file: OriginalFile, source: Source) -> None:
    sha256 = _sha256(path)
    if sha256 != file.sha256:
        remedy = "delete it, and load again" if source.base_url else "put the original in its place"
        raise DataUnavailableError(
            f"{source.name}: {path} is damaged, its sha256 is {sha256} and not {file.sha256}: "
            f"{remedy}."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(
    source: Source, files: list[OriginalFile], folders: list[Path], allowed: bool
) -> None:
    """Puts the files into the cache, each one whole or not at all."""
    names = ", ".join(file.name for file in files)
    remedy = (
        f"put {names} into a folder, and pass it as data_dir or name it in {DATA_DIR_VARIABLE}."
    )
    nowhere = f"{source.name}: there is no {names} in {' or '.join(map(str, folders))}"
    if source.base_url is None:
        raise DataUnavailableError(f"{nowhere}, and it cannot be downloaded: {remedy}")
    if not allowed:
        raise DataUnavailableError(
            f"{nowhere}, and download=False: allow the download, or {remedy}"
        )
    # The download manager retries for minutes when there is no network.
    if not _answers(source.base_url + files[0].name):
        raise DataUnavailableError(
            f"{source.name}: {source.base_url} does not answer: check the network, or {remedy}"
        )
    import tensorflow_datasets as tfds  # half a second, and only a first download needs it

    cache = _cache_folder(source)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        manager = tfds.download.DownloadManager(download_dir=scratch)
        for file in files:
            try:
                path = Path(manager.download(source.base_url + file.name))
            except Exception as error:  # of requests, of urllib3 and of tensorflow-datasets
                raise DataUnavailableError(
                    f"{source.name}: the download from {source.base_url} failed "
                    f"({type(error).__name__}: {error}): try again, or {remedy}"
                ) from error
            if (sha256 := _sha256(path)) != file.sha256:
                raise DataUnavailableError(
                    f"{source.name}: {source.base_url} sent another {file.name}, its sha256 is "
                    f"{sha256} and not {file.sha256}: try again, or {remedy}"
                )
            path.replace(cache / file.name)


def _answers(url: str) -> bool:
    """Tells whether the host of `url` answers within `PROBE_SECONDS`, other than "out of order"."""
    import requests  # of tensorflow-datasets; like it, this goes through the environment's proxies

    answered = threading.Event()

    def ask() -> None:
        try:
            with requests.head(url, timeout=PROBE_SECONDS) as response:
                if response.status_code < 500:
                    answered.set()
        except requests.exceptions.RequestException:
            pass

    # A thread: the timeout above is one of many (name look-up, each address), and they add up.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answered.is_set()

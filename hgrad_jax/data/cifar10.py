"""CIFAR-10 from its original binary version, and a local subset of its records.

The images are A. Krizhevsky's (Learning Multiple Layers of Features from Tiny Images, 2009); they
are not shipped. A record is 3,073 bytes: the class, then 1,024 red, green and blue values each,
row by row.
"""

import os
import tarfile

import numpy as np

from hgrad_jax.data.dataset import Dataset, Splits
from hgrad_jax.data.originals import OriginalFile, Source, fetch

SOURCE = Source(
    name="cifar10",
    folder="cifar10",
    base_url="https://www.cs.toronto.edu/~kriz/",
    files=(
        OriginalFile(
            "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
)

SUBSET_SOURCE = Source(
    name="cifar10_subset",
    folder="cifar10-subset",
    base_url=None,
    files=(
        OriginalFile(
            "data_batch_1-first4000.bin",
            "0993cf8b8e43bc207603aef9787006995746513f5e3fa5a52e06d1b069926330",
        ),
        OriginalFile(
            "test_batch-first1000.bin",
            "8314c96d7cd65618193bab23acdd5d4c4af15bf6dd00a1781d55beedf3be1ef5",
        ),
    ),
)


def load_cifar10(data_dir: str | os.PathLike[str] | None = None, download: bool = True) -> Splits:
    """Returns the 50,000 training and 10,000 test images.

    Args:
      data_dir: a folder with `cifar-10-binary.tar.gz`, or with a folder `cifar10` that holds it;
        None for the one that HGRAD_JAX_DATA_DIR names. Then comes the library's cache.
      download: whether the archive (170 MB) may be downloaded into the cache.

    Returns:
      inputs float32 [N, 32, 32, 3] in [0, 1], red, green, blue; labels int32 [N], 0..9.

    Raises:
      DataUnavailableError: the archive is damaged, or missing and not to be had.
    """
    (path,) = fetch(SOURCE, data_dir=data_dir, download=download)
    with tarfile.open(path) as archive:
        train = b"".join(_member(archive, f"data_batch_{i}.bin") for i in range(1, 6))
        test = _member(archive, "test_batch.bin")
    return Splits(read_records(train), read_records(test))


def load_cifar10_subset(data_dir: str | os.PathLike[str] | None = None) -> Splits:
    """Returns the first 4,000 training and the first 1,000 test images of CIFAR-10.

    Not the data set: say "CIFAR-10 subset (4,000/1,000)" beside any number from it. It is never
    downloaded. To make the files, cut `data_batch_1.bin` and `test_batch.bin` after that many
    records of 3,073 bytes.

    Args:
      data_dir: a folder with `data_batch_1-first4000.bin` and `test_batch-first1000.bin`, or with a
        folder `cifar10-subset` that holds them; None for the one that HGRAD_JAX_DATA_DIR names.

    Returns:
      inputs float32 [N, 32, 32, 3] in [0, 1], red, green, blue; labels int32 [N], 0..9.

    Raises:
      DataUnavailableError: a file is damaged or missing.
    """
    train, test = fetch(SUBSET_SOURCE, data_dir=data_dir, download=False)
    return Splits(read_records(train.read_bytes()), read_records(test.read_bytes()))


def read_records(raw: bytes) -> Dataset:
    """Returns the images and classes of CIFAR-10's binary records.

    Args:
      raw: N records of 3,073 bytes.

    Returns:
      inputs float32 [N, 32, 32, 3] in [0, 1]; labels int32 [N].

    Raises:
      ValueError: the length is not a multiple of a record's.

    >>> read_records(bytes([7]) + bytes(1024) + bytes([255]) * 2048).inputs[0, 0, 0].tolist()
    [0.0, 1.0, 1.0]
    """
    if len(raw) % 3073:
        raise ValueError(f"{len(raw)} bytes are not a whole number of records of 3073 bytes.")
    records = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    inputs = images.astype(np.float32, order="C")
    inputs /= 255  # in place: a second array would be 614 MB
    return Dataset(inputs, records[:, 0].astype(np.int32))


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(f"cifar-10-batches-bin/{name}")
    assert stream is not None  # the archive's sum was right, so its members are files
    return stream.read()

"""MNIST from its four original IDX files, in their original order.

The data is Y. LeCun's and C. Cortes's, made available under CC BY-SA 3.0; it is not shipped.
"""

import gzip
import os
import struct
from pathlib import Path

import numpy as np

from hgrad_jax.data.dataset import Dataset, Splits
from hgrad_jax.data.originals import OriginalFile, Source, fetch

SOURCE = Source(
    name="mnist",
    folder="mnist",
    base_url="https://storage.googleapis.com/cvdf-datasets/mnist/",
    files=(
        OriginalFile(
            "train-images-idx3-ubyte.gz",
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        OriginalFile(
            "train-labels-idx1-ubyte.gz",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        OriginalFile(
            "t10k-images-idx3-ubyte.gz",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        OriginalFile(
            "t10k-labels-idx1-ubyte.gz",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
)


def load_mnist(data_dir: str | os.PathLike[str] | None = None, download: bool = True) -> Splits:
    """Returns the 60,000 training and 10,000 test digits.

    Args:
      data_dir: a folder with the original files, or with a folder `mnist` that holds them; None
        for the one that HGRAD_JAX_DATA_DIR names. Then comes the library's cache.
      download: whether missing files (12 MB) may be downloaded into the cache.

    Returns:
      inputs float32 [N, 28, 28, 1] in [0, 1], 0 is the background; labels int32 [N], 0..9.

    Raises:
      DataUnavailableError: a file is damaged, or missing and not to be had.
    """
    images, labels, test_images, test_labels = fetch(SOURCE, data_dir=data_dir, download=download)
    return Splits(_dataset(images, labels), _dataset(test_images, test_labels))


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Returns the array in a gzipped IDX file of bytes.

    The format: two zero bytes, the type (8: unsigned byte), the number of axes, each axis's length
    as a big-endian uint32, the elements in row-major order.

    Args:
      path: the file.

    Returns:
      uint8 [*shape], read-only.

    Raises:
      ValueError: the header is not one of bytes, or the elements are not as many as it says.
    """
    raw = gzip.decompress(Path(path).read_bytes())
    if raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it begins {raw[:4]!r}.")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if values.size != np.prod(shape, dtype=int):
        raise ValueError(f"{path} says its shape is {list(shape)} but holds {values.size} bytes.")
    return values.reshape(shape)


def _dataset(images: Path, labels: Path) -> Dataset:
    inputs = read_idx(images)[..., None].astype(np.float32)
    inputs /= 255  # in place: a second array would be 188 MB
    return Dataset(inputs, read_idx(labels).astype(np.int32))

"""USPS digits in the three parts of a neural-network course's assignment, read from its files.

16x16 grey digits, every class equally often, in the order 0 1 2 ... 9 0 1 2 ...: T. Tieleman's
division for csc321 (Toronto), used by CS-E4850 (Aalto) too. The files are MATLAB's, with `inputs`
256 x N, a column an image, and `target` 10 x N of zeros and ones. They are not shipped.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hgrad_jax.data.dataset import Dataset
from hgrad_jax.data.originals import OriginalFile, Source, fetch

SOURCE = Source(
    name="usps",
    folder="usps",
    base_url=None,
    files=(
        OriginalFile(
            "data_train.mat",
            "5255f3e6777797bb585acdd3f4527c1f0c0eaa7c15f842d3f3b7dc56baaee3b9",
        ),
        OriginalFile(
            "data_validation.mat",
            "2693364f0766a2156c04ddb36b188875bb50c53c4f8c7137bad279d9fad8da69",
        ),
        OriginalFile(
            "data_test.mat",
            "4fb85205f16acb934efca47ccecdc3ce7e4396370a9eb9757b8c32ee39555fe5",
        ),
    ),
)


class Usps(NamedTuple):
    """The parts of the USPS digits: what to learn from, to choose by, and to report on."""

    train: Dataset
    validation: Dataset
    test: Dataset


def load_usps(data_dir: str | os.PathLike[str] | None = None) -> Usps:
    """Returns the 1,000 training, 1,000 validation and 9,000 test digits.

    They are never downloaded.

    Args:
      data_dir: a folder with `data_train.mat`, `data_validation.mat` and `data_test.mat`, or with a
        folder `usps` that holds them; None for the one that HGRAD_JAX_DATA_DIR names.

    Returns:
      inputs float32 [N, 16, 16, 1] in [0, 1], 0 is the background; labels int32 [N], 0..9.

    Raises:
      DataUnavailableError: a file is damaged or missing.
    """
    return Usps(*map(read_mat, fetch(SOURCE, data_dir=data_dir, download=False)))


def read_mat(path: str | os.PathLike[str]) -> Dataset:
    """Returns the images and classes in one of the files.

    Args:
      path: a MATLAB file with `inputs` 256 x N and `target` 10 x N.

    Returns:
      inputs float32 [N, 16, 16, 1]; labels int32 [N].

    Raises:
      ValueError: it holds something else.
    """
    from scipy.io import loadmat  # which jax needs anyway; it takes a while to import

    arrays = loadmat(Path(path))
    shapes = [np.shape(arrays.get(name, 0)) for name in ("inputs", "target")]
    if [shape[:1] for shape in shapes] != [(256,), (10,)] or shapes[0][1:] != shapes[1][1:]:
        raise ValueError(
            f"{path} has inputs {list(shapes[0])} and target {list(shapes[1])}, not 256 x N and "
            "10 x N."
        )
    inputs = np.ascontiguousarray(arrays["inputs"].T, np.float32).reshape(-1, 16, 16, 1)
    return Dataset(inputs, arrays["target"].argmax(axis=0).astype(np.int32))

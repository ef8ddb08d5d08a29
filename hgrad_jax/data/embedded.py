"""The data sets that come with the package: no download, no cache, a millisecond.

Sources and terms: `files/README.md`.
"""

import csv
from importlib import resources
from typing import IO

import numpy as np

from hgrad_jax.data.dataset import Dataset

SPECIES = ("Adelie", "Chinstrap", "Gentoo")
MEASUREMENTS = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")


def load_digits() -> Dataset:
    """Returns the 1,797 handwritten 8x8 digits of 13 writers (Alpaydin and Kaynak, 1998).

    The same values, in the same order, as scikit-learn's `load_digits`, divided by 16.

    Returns:
      inputs float32 [1797, 64] in [0, 1], row by row, 0 is the background; labels int32 [1797],
      0..9.

    >>> digits = load_digits()
    >>> digits.inputs.shape, digits.labels[:5].tolist()
    ((1797, 64), [0, 1, 2, 3, 4])
    """
    with _open("digits.npz") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    return Dataset(images.reshape(-1, 64).astype(np.float32) / 16, labels.astype(np.int32))


def load_penguins() -> Dataset:
    """Returns the four measurements of 342 Palmer penguins, in their units, with the species.

    The two birds of the 344 without measurements are left out. The columns are `MEASUREMENTS`:
    millimetres and grams, so standardize them before training.

    Returns:
      inputs float32 [342, 4]; labels int32 [342], the index into `SPECIES`.

    >>> load_penguins().inputs[0].tolist()
    [39.099..., 18.700..., 181.0, 3750.0]
    """
    with _open("penguins.csv") as file:
        lines = file.read().decode("utf-8").splitlines()
    rows = [row for row in csv.DictReader(lines) if row["body_mass_g"] != "NA"]
    inputs = np.array([[float(row[name]) for name in MEASUREMENTS] for row in rows], np.float32)
    return Dataset(inputs, np.array([SPECIES.index(row["species"]) for row in rows], np.int32))


def _open(name: str) -> IO[bytes]:
    return (resources.files("hgrad_jax.data") / "files" / name).open("rb")

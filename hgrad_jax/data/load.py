"""Data sets by name, all in one form: for a program whose user chooses among them."""

import os
from collections.abc import Callable

from hgrad_jax.data.cifar10 import load_cifar10, load_cifar10_subset
from hgrad_jax.data.dataset import Dataset, Splits, split
from hgrad_jax.data.embedded import load_digits, load_penguins
from hgrad_jax.data.mnist import load_mnist
from hgrad_jax.data.usps import Usps, load_usps
from hgrad_jax.inputs.arguments import taken


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, download: bool = True
) -> Splits:
    """Returns the training and test part of the data set called `name`.

    | name | train / test | inputs | from |
    |---|---|---|---|
    | `digits` | 1,438 / 359 | [64] | the package |
    | `penguins` | 274 / 68 | [4] | the package |
    | `mnist` | 60,000 / 10,000 | [28, 28, 1] | `load_mnist` |
    | `cifar10` | 50,000 / 10,000 | [32, 32, 3] | `load_cifar10` |
    | `cifar10_subset` | 4,000 / 1,000 | [32, 32, 3] | `load_cifar10_subset` |
    | `usps` | 1,000 / 9,000 | [16, 16, 1] | `load_usps`, which has a validation part too |

    The first two have no test part of their own: theirs is `split(..., (0.8, 0.2), seed=0)`.

    Args:
      name: one of the names above.
      data_dir: where to look for original files first; not used by the embedded sets.
      download: whether missing files may be downloaded; not used by those without a download.

    Returns:
      `Splits(train, test)`; inputs float32 [N, *shape], labels int32 [N].

    Raises:
      TypeError: the name is no str, or download no bool.
      ValueError: the name is unknown.
      DataUnavailableError: a file is damaged, or missing and not to be had.

    >>> train, test = load("digits")
    >>> train.inputs.shape, test.inputs.shape
    ((1438, 64), (359, 64))
    """
    name, download = taken(name=name, download=download)
    loaders: dict[str, Callable[[], Splits]] = {
        "digits": lambda: _eighty_twenty(load_digits()),
        "penguins": lambda: _eighty_twenty(load_penguins()),
        "mnist": lambda: load_mnist(data_dir, download),
        "cifar10": lambda: load_cifar10(data_dir, download),
        "cifar10_subset": lambda: load_cifar10_subset(data_dir),
        "usps": lambda: _without_validation(load_usps(data_dir)),
    }
    if name not in loaders:
        raise ValueError(
            f"name is {name!r}: there is no data set {name!r}: the known ones are "
            f"{', '.join(loaders)}."
        )
    return loaders[name]()


def _eighty_twenty(data: Dataset) -> Splits:
    return Splits(*split(data, (0.8, 0.2), seed=0))


def _without_validation(data: Usps) -> Splits:
    return Splits(data.train, data.test)

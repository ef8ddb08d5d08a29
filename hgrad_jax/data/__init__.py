"""Data sets as numpy arrays, and the minibatches that training draws from them."""

from hgrad_jax.data.cifar10 import load_cifar10 as load_cifar10
from hgrad_jax.data.cifar10 import load_cifar10_subset as load_cifar10_subset
from hgrad_jax.data.dataset import Dataset as Dataset
from hgrad_jax.data.dataset import Splits as Splits
from hgrad_jax.data.dataset import split as split
from hgrad_jax.data.embedded import load_digits as load_digits
from hgrad_jax.data.embedded import load_penguins as load_penguins
from hgrad_jax.data.examples import validate_examples as validate_examples
from hgrad_jax.data.examples import validate_finite as validate_finite
from hgrad_jax.data.load import load as load
from hgrad_jax.data.minibatches import BatchFn as BatchFn
from hgrad_jax.data.minibatches import full_batch as full_batch
from hgrad_jax.data.minibatches import minibatches as minibatches
from hgrad_jax.data.minibatches import shuffled as shuffled
from hgrad_jax.data.minibatches import with_replacement as with_replacement
from hgrad_jax.data.mnist import load_mnist as load_mnist
from hgrad_jax.data.originals import DataUnavailableError as DataUnavailableError
from hgrad_jax.data.overlap import shared_examples as shared_examples
from hgrad_jax.data.usps import Usps as Usps
from hgrad_jax.data.usps import load_usps as load_usps

"""Flax classifiers and their losses."""

from hgrad_jax.models.batch_norm import BatchNorm as BatchNorm
from hgrad_jax.models.batch_norm import batch_statistics as batch_statistics
from hgrad_jax.models.classification import classification_loss as classification_loss
from hgrad_jax.models.classification import classification_metrics as classification_metrics
from hgrad_jax.models.classifiers import CNN as CNN
from hgrad_jax.models.classifiers import MLP as MLP
from hgrad_jax.models.classifiers import SoftmaxRegression as SoftmaxRegression
from hgrad_jax.models.initializers import cosine as cosine
from hgrad_jax.models.initializers import glorot_normal as glorot_normal
from hgrad_jax.models.initializers import glorot_uniform as glorot_uniform
from hgrad_jax.models.initializers import he_normal as he_normal
from hgrad_jax.models.initializers import he_uniform as he_uniform
from hgrad_jax.models.initializers import scaled_normal as scaled_normal
from hgrad_jax.models.initializers import uniform as uniform
from hgrad_jax.models.losses import cross_entropy as cross_entropy
from hgrad_jax.models.losses import error_rate as error_rate

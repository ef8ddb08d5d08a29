"""Hyperparameters as trees: which parameters share one, where it may be, and what it does."""

from hgrad_jax.hyper.parametrizations import Parametrization as Parametrization
from hgrad_jax.hyper.parametrizations import log as log
from hgrad_jax.hyper.parametrizations import log10 as log10
from hgrad_jax.hyper.parametrizations import logit as logit
from hgrad_jax.hyper.parametrizations import one_minus_exp as one_minus_exp
from hgrad_jax.hyper.parametrizations import softplus as softplus
from hgrad_jax.hyper.penalties import l1 as l1
from hgrad_jax.hyper.penalties import l2 as l2
from hgrad_jax.hyper.penalties import weighted_mean as weighted_mean
from hgrad_jax.hyper.rescaling import rescaled as rescaled
from hgrad_jax.hyper.rescaling import weights_of as weights_of
from hgrad_jax.hyper.sharing import Sharing as Sharing
from hgrad_jax.hyper.sharing import by_shape as by_shape
from hgrad_jax.hyper.sharing import one_for_all as one_for_all
from hgrad_jax.hyper.sharing import over_windows as over_windows
from hgrad_jax.hyper.sharing import per_filter as per_filter
from hgrad_jax.hyper.sharing import per_input_unit as per_input_unit
from hgrad_jax.hyper.sharing import per_output_unit as per_output_unit
from hgrad_jax.hyper.sharing import per_parameter as per_parameter
from hgrad_jax.hyper.sharing import per_tensor as per_tensor

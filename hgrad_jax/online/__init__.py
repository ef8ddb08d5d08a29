"""Hyperparameters that are updated while the parameters train: transitions that hold both."""

from hgrad_jax.online.adaptive import adaptive as adaptive
from hgrad_jax.online.batches import Batches as Batches
from hgrad_jax.online.batches import Period as Period
from hgrad_jax.online.batches import paired as paired
from hgrad_jax.online.batches import periods as periods
from hgrad_jax.online.hypergradient_descent import DescentState as DescentState
from hgrad_jax.online.hypergradient_descent import additive as additive
from hgrad_jax.online.hypergradient_descent import hypergradient_descent as hypergradient_descent
from hgrad_jax.online.hypergradient_descent import multiplicative as multiplicative
from hgrad_jax.online.learned import OnlineState as OnlineState
from hgrad_jax.online.real_time import RealTimeState as RealTimeState
from hgrad_jax.online.real_time import rtho as rtho
from hgrad_jax.online.signs import by_sign as by_sign
from hgrad_jax.online.t1_t2 import t1_t2 as t1_t2

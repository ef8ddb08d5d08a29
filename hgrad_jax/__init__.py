"""Hypergradients: gradients through training, exact to the last bit."""

from hgrad_jax.adjoints.checkpointed import Checkpointed as Checkpointed
from hgrad_jax.adjoints.direct import Direct as Direct
from hgrad_jax.adjoints.reversible import Reversible as Reversible
from hgrad_jax.check import HypergradientError as HypergradientError
from hgrad_jax.check import check as check
from hgrad_jax.elementary.kick_drift import KickDrift as KickDrift
from hgrad_jax.elementary.kick_drift import KickDriftState as KickDriftState
from hgrad_jax.elementary.kick_drift import Slot as Slot
from hgrad_jax.elementary.kick_drift import kick_drift as kick_drift
from hgrad_jax.elementary.momentum import heavy_ball as heavy_ball
from hgrad_jax.elementary.momentum import momentum as momentum
from hgrad_jax.elementary.source import field as field
from hgrad_jax.types import BackwardInfo as BackwardInfo
from hgrad_jax.types import RunInfo as RunInfo
from hgrad_jax.types import Transition as Transition
from hgrad_jax.types import Unrolled as Unrolled
from hgrad_jax.unroll import Bars as Bars
from hgrad_jax.unroll import unroll as unroll
from hgrad_jax.unroll import vjp as vjp

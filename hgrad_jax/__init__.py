"""Hypergradients: gradients through training, exact to the last bit."""

from hgrad_jax import hyper as hyper
from hgrad_jax import online as online
from hgrad_jax.adjoints.checkpointed import Checkpointed as Checkpointed
from hgrad_jax.adjoints.direct import Direct as Direct
from hgrad_jax.adjoints.drmad import DrMAD as DrMAD
from hgrad_jax.adjoints.drmad import DrMAD2 as DrMAD2
from hgrad_jax.adjoints.drmad import EarlyDisplacement as EarlyDisplacement
from hgrad_jax.adjoints.forward_mode import ForwardMode as ForwardMode
from hgrad_jax.adjoints.implicit.conditions import FixedPoint as FixedPoint
from hgrad_jax.adjoints.implicit.conditions import Root as Root
from hgrad_jax.adjoints.implicit.conditions import Stationary as Stationary
from hgrad_jax.adjoints.implicit.implicit import Implicit as Implicit
from hgrad_jax.adjoints.polyline import Clip as Clip
from hgrad_jax.adjoints.reversible import Reversible as Reversible
from hgrad_jax.adjoints.truncated import Truncated as Truncated
from hgrad_jax.adjoints.waypoints import EqualArcLength as EqualArcLength
from hgrad_jax.adjoints.waypoints import EvenSteps as EvenSteps
from hgrad_jax.adjoints.waypoints import Waypoints as Waypoints
from hgrad_jax.check import HypergradientError as HypergradientError
from hgrad_jax.check import check as check
from hgrad_jax.derivatives import hvp as hvp
from hgrad_jax.derivatives import jacobian_of_final_params as jacobian_of_final_params
from hgrad_jax.derivatives import mixed_product as mixed_product
from hgrad_jax.diagnostics.compare import compare as compare
from hgrad_jax.diagnostics.comparison import Comparison as Comparison
from hgrad_jax.diagnostics.cotangents import cotangent_norms as cotangent_norms
from hgrad_jax.diagnostics.distances import distances_to as distances_to
from hgrad_jax.diagnostics.gradient_check import check_gradient as check_gradient
from hgrad_jax.diagnostics.gradient_check import check_hypergradient as check_hypergradient
from hgrad_jax.diagnostics.gradient_report import GradientReport as GradientReport
from hgrad_jax.diagnostics.plan import Plan as Plan
from hgrad_jax.diagnostics.plan import plan as plan
from hgrad_jax.diagnostics.projections import projections as projections
from hgrad_jax.diagnostics.reversal import reversal_errors as reversal_errors
from hgrad_jax.forward_gradients.directions import Directions as Directions
from hgrad_jax.forward_gradients.directions import Gaussian as Gaussian
from hgrad_jax.forward_gradients.directions import Orthogonal as Orthogonal
from hgrad_jax.forward_gradients.directions import Rademacher as Rademacher
from hgrad_jax.forward_gradients.directions import Standardized as Standardized
from hgrad_jax.forward_gradients.forward_gradient import forward_gradient as forward_gradient
from hgrad_jax.hypergradient import Hypergradient as Hypergradient
from hgrad_jax.hypergradient import value_and_hypergradient as value_and_hypergradient
from hgrad_jax.many.data_parallel import data_parallel as data_parallel
from hgrad_jax.many.devices import over_devices as over_devices
from hgrad_jax.many.moments import Moments as Moments
from hgrad_jax.many.moments import mean_and_spread as mean_and_spread
from hgrad_jax.rules.adam import adam as adam
from hgrad_jax.rules.adam import adamw as adamw
from hgrad_jax.rules.average import AverageState as AverageState
from hgrad_jax.rules.average import average as average
from hgrad_jax.rules.average import polyak_average as polyak_average
from hgrad_jax.rules.form import KickDrift as KickDrift
from hgrad_jax.rules.form import KickDriftState as KickDriftState
from hgrad_jax.rules.gradients import backpropagation as backpropagation
from hgrad_jax.rules.kick_drift import kick_drift as kick_drift
from hgrad_jax.rules.modifiers import RandomModifier as RandomModifier
from hgrad_jax.rules.modifiers import add_noise as add_noise
from hgrad_jax.rules.modifiers import add_weight_decay as add_weight_decay
from hgrad_jax.rules.modifiers import clip_by_norm as clip_by_norm
from hgrad_jax.rules.modifiers import clip_by_value as clip_by_value
from hgrad_jax.rules.modifiers import modified as modified
from hgrad_jax.rules.momentum import classical_momentum as classical_momentum
from hgrad_jax.rules.momentum import heavy_ball as heavy_ball
from hgrad_jax.rules.momentum import momentum as momentum
from hgrad_jax.rules.nesterov import nesterov as nesterov
from hgrad_jax.rules.optax_bridge import OptaxState as OptaxState
from hgrad_jax.rules.optax_bridge import from_optax as from_optax
from hgrad_jax.rules.projection import project_to_box as project_to_box
from hgrad_jax.rules.rmsprop import rmsprop as rmsprop
from hgrad_jax.rules.rmsprop import rmsprop_momentum as rmsprop_momentum
from hgrad_jax.rules.sgd import sgd as sgd
from hgrad_jax.rules.source import field as field
from hgrad_jax.run import Run as Run
from hgrad_jax.runs.adjoint import Adjoint as Adjoint
from hgrad_jax.runs.adjoint import Work as Work
from hgrad_jax.solvers.conjugate_gradient import ConjugateGradient as ConjugateGradient
from hgrad_jax.solvers.gmres import GMRES as GMRES
from hgrad_jax.solvers.neumann import Neumann as Neumann
from hgrad_jax.training.checkpoints import Checkpoints as Checkpoints
from hgrad_jax.training.fit import fit as fit
from hgrad_jax.training.folder import CheckpointError as CheckpointError
from hgrad_jax.training.grid import grid as grid
from hgrad_jax.training.history import History as History
from hgrad_jax.training.interruption import Interrupted as Interrupted
from hgrad_jax.training.run import Fit as Fit
from hgrad_jax.training.stopping import Best as Best
from hgrad_jax.training.stopping import EarlyStopping as EarlyStopping
from hgrad_jax.training.stopping import Target as Target
from hgrad_jax.training.sweep import sweep as sweep
from hgrad_jax.training.sweep_result import Sweep as Sweep
from hgrad_jax.tuning.history import TuningHistory as TuningHistory
from hgrad_jax.tuning.meta_step import MetaStep as MetaStep
from hgrad_jax.tuning.meta_step import meta_step as meta_step
from hgrad_jax.tuning.meta_steps import MetaSteps as MetaSteps
from hgrad_jax.tuning.meta_steps import meta_steps as meta_steps
from hgrad_jax.tuning.optimizers import nonnegative_adam as nonnegative_adam
from hgrad_jax.tuning.optimizers import projected as projected
from hgrad_jax.tuning.optimizers import sign_descent as sign_descent
from hgrad_jax.tuning.policies import Skip as Skip
from hgrad_jax.tuning.policies import Stop as Stop
from hgrad_jax.tuning.records import Records as Records
from hgrad_jax.tuning.result import BestHparams as BestHparams
from hgrad_jax.tuning.result import Tuned as Tuned
from hgrad_jax.tuning.result import TuningError as TuningError
from hgrad_jax.tuning.tune import tune as tune
from hgrad_jax.types import BackwardInfo as BackwardInfo
from hgrad_jax.types import RunInfo as RunInfo
from hgrad_jax.types import Slot as Slot
from hgrad_jax.types import Transition as Transition
from hgrad_jax.types import Unrolled as Unrolled
from hgrad_jax.unroll import Bars as Bars
from hgrad_jax.unroll import unroll as unroll
from hgrad_jax.unroll import vjp as vjp

__version__ = "0.1.0"

__all__ = [
    "GMRES",
    "Adjoint",
    "AverageState",
    "BackwardInfo",
    "Bars",
    "Best",
    "BestHparams",
    "CheckpointError",
    "Checkpointed",
    "Checkpoints",
    "Clip",
    "Comparison",
    "ConjugateGradient",
    "Direct",
    "Directions",
    "DrMAD",
    "DrMAD2",
    "EarlyDisplacement",
    "EarlyStopping",
    "EqualArcLength",
    "EvenSteps",
    "Fit",
    "FixedPoint",
    "ForwardMode",
    "Gaussian",
    "GradientReport",
    "History",
    "Hypergradient",
    "HypergradientError",
    "Implicit",
    "Interrupted",
    "KickDrift",
    "KickDriftState",
    "MetaStep",
    "MetaSteps",
    "Moments",
    "Neumann",
    "OptaxState",
    "Orthogonal",
    "Plan",
    "Rademacher",
    "RandomModifier",
    "Records",
    "Reversible",
    "Root",
    "Run",
    "RunInfo",
    "Skip",
    "Slot",
    "Standardized",
    "Stationary",
    "Stop",
    "Sweep",
    "Target",
    "Transition",
    "Truncated",
    "Tuned",
    "TuningError",
    "TuningHistory",
    "Unrolled",
    "Waypoints",
    "Work",
    "adam",
    "adamw",
    "add_noise",
    "add_weight_decay",
    "average",
    "backpropagation",
    "check",
    "check_gradient",
    "check_hypergradient",
    "classical_momentum",
    "clip_by_norm",
    "clip_by_value",
    "compare",
    "cotangent_norms",
    "data_parallel",
    "distances_to",
    "field",
    "fit",
    "forward_gradient",
    "from_optax",
    "grid",
    "heavy_ball",
    "hvp",
    "hyper",
    "jacobian_of_final_params",
    "kick_drift",
    "mean_and_spread",
    "meta_step",
    "meta_steps",
    "mixed_product",
    "modified",
    "momentum",
    "nesterov",
    "nonnegative_adam",
    "online",
    "over_devices",
    "plan",
    "polyak_average",
    "project_to_box",
    "projected",
    "projections",
    "reversal_errors",
    "rmsprop",
    "rmsprop_momentum",
    "sgd",
    "sign_descent",
    "sweep",
    "tune",
    "unroll",
    "value_and_hypergradient",
    "vjp",
]


def __dir__() -> list[str]:
    """Returns the public names, without the modules that they come from."""
    return [*__all__, "__version__"]

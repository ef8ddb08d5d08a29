"""Which keys the meta-steps of a tuning have."""

import jax

from hgrad_jax.types import Array

RUNS_ROLE, SPLIT_ROLE = 0, 1


def meta_step_key(key: Array | None, role: int, k: int | Array) -> Array | None:
    """Returns the key that meta-step k uses in a role, or None where there is none."""
    return None if key is None else jax.random.fold_in(jax.random.fold_in(key, role), k)

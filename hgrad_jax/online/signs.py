"""Steps of fixed lengths against the signs of a hypergradient."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from hgrad_jax.online.learned import MakeTx
from hgrad_jax.rules.arithmetic import elementwise
from hgrad_jax.rules.source import Source, read
from hgrad_jax.types import Hparams


def by_sign(step_sizes: Mapping[str, Source]) -> MakeTx:
    """Returns the update u' = u - step * sign(hypergradient), with a step for each entry by name.

    How far hypergradients reach varies by orders of magnitude between weights and over training;
    their signs do not (St. Jules 2017, section 3.2). A number whose hypergradient is zero stays.

    Args:
      step_sizes: `{name: step}` for every learned entry: a number, or a function of hparams; its
        value is a tree prefix of the entry.

    Returns:
      `make_tx(hparams)`, what the online methods take.

    Raises:
      TypeError: step_sizes is no dict.
      ValueError: at the first step, its names are not those of what is learned.

    >>> tx = by_sign({"log_rate": 0.2})({})
    >>> tx.update({"log_rate": jnp.array([-7.0, 0.0, 1e-9])}, tx.init({}))[0]
    {'log_rate': Array([ 0.2, -0. , -0.2], dtype=float32)}
    """
    if not isinstance(step_sizes, Mapping):
        raise TypeError(
            f"step_sizes is {step_sizes!r}; it must be a dict of steps by name, such as "
            '{"log_learning_rate": 0.2}.'
        )

    def make_tx(hparams: Hparams) -> optax.GradientTransformation:
        def against(hypergradient: Any, learned: Any) -> Any:
            del learned
            if set(hypergradient) != set(step_sizes):
                raise ValueError(
                    f"step_sizes has {sorted(step_sizes)}, but learned is {sorted(hypergradient)}; "
                    "give a step for each."
                )
            return {
                name: elementwise(
                    lambda g, step: -step * jnp.sign(g),
                    hypergradient[name],
                    step=read(step_sizes[name], hparams, name),
                )
                for name in hypergradient
            }

        return optax.stateless(against)

    return make_tx

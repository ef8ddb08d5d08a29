"""States as integers, and back."""

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.bits import fixed_point
from hgrad_jax.bits.kinds import Integer, Kind
from hgrad_jax.rules.form import PARAMS, KickDrift, KickDriftState
from hgrad_jax.tools.vectors import Layout, ravel
from hgrad_jax.types import Array, Params


def kind_of(rule: KickDrift, name: str, like: Layout) -> Kind:
    """Returns the kind of number in which a variable is kept."""
    return fixed_point.kind_of(like.dtype, is_double=rule.slots[name].is_double)


def bounded(rule: KickDrift, name: str, x: Array, like: Layout) -> Array:
    """Returns floating-point numbers with marks in place of what a variable cannot hold."""
    return fixed_point.bounded(x, rule.slots[name].fraction_bits, kind_of(rule, name, like))


def encode(rule: KickDrift, name: str, x: Array, like: Layout) -> Integer:
    """Returns floating-point numbers `[N]`, from `bounded`, in the fixed point of a variable."""
    kind = kind_of(rule, name, like)
    return kind.encode(x, kind.fraction_factor * rule.slots[name].fraction_bits)


def encode_state(rule: KickDrift, state: KickDriftState, like: Layout) -> dict[str, Integer]:
    """Returns the variables of a state as fixed point."""
    trees = {PARAMS: state.params, **state.slots}
    vectors = {name: bounded(rule, name, ravel(trees[name], like), like) for name in rule.slots}
    return {name: encode(rule, name, vector, like) for name, vector in vectors.items()}


def read(rule: KickDrift, values: dict[str, Integer], name: str, like: Layout) -> Array:
    """Returns one variable as a floating-point vector `[N]`."""
    kind = kind_of(rule, name, like)
    fraction_bits = kind.fraction_factor * rule.slots[name].fraction_bits
    return kind.decode(values[name], fraction_bits, like.dtype)


def read_tree(rule: KickDrift, values: dict[str, Integer], name: str, like: Layout) -> Params:
    """Returns one variable as the layout has it: a tree like params, or a vector."""
    if like.is_flat:
        return read(rule, values, name, like)
    # Sliced before it is decoded: the compiler makes one loop of both.
    words, treedef = jax.tree.flatten(values[name])
    ends = np.cumsum([int(np.prod(shape)) for shape in like.shapes])
    parts = zip(*(jnp.split(word, ends[:-1]) for word in words), strict=True)
    leaves = [
        read(rule, {name: jax.tree.unflatten(treedef, part)}, name, like)
        .reshape(shape)
        .astype(dtype)
        for part, shape, dtype in zip(parts, like.shapes, like.dtypes, strict=True)
    ]
    return jax.tree.unflatten(like.treedef, leaves)


def decode_state(
    rule: KickDrift, values: dict[str, Integer], like: Layout, count: Array
) -> KickDriftState:
    """Returns the floating-point state."""
    trees = {name: read_tree(rule, values, name, like) for name in rule.slots}
    params = trees.pop(PARAMS)
    return KickDriftState(params, trees, count)

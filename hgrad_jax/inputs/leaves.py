"""What the leaves of params and hparams are not, and where each of those belongs instead.

Only real floating-point numbers are trained or differentiated. What else stands in a tree has its
own place: a mask made float would be trained, and a key would be no key.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from hgrad_jax.inputs.functions import is_array


def require_float(leaf: Any, where: str) -> None:
    """Raises if a leaf is no array of real floating-point numbers, and says where it belongs.

    Args:
      leaf: of `params` or `hparams`.
      where: its path, such as "params['mask']".

    Raises:
      TypeError: it is none.

    >>> require_float(True, "params['mask']")
    Traceback (most recent call last):
    TypeError: params['mask'] has dtype bool, a mask or flag, which is not trained; take it out, ...
    """
    is_hparams = "hparams" in where
    if not is_array(leaf):
        tree = "hparams" if is_hparams else where.partition("[")[0]
        if dataclasses.is_dataclass(leaf):
            raise TypeError(
                f"{where} is of the class {type(leaf).__name__}, which JAX takes for one leaf; "
                f"put jax.tree_util.register_dataclass({type(leaf).__name__}) below the class, or "
                "make it a flax.struct.dataclass."
            )
        raise TypeError(
            f"{where} is {leaf!r}, not an array of floats; keep such settings out of {tree}."
        )
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{where} has dtype {dtype}, {_way_out(leaf, dtype, is_hparams)}.")
    if jnp.finfo(dtype).bits < 16:
        raise TypeError(
            f"{where} has dtype {dtype}, in which JAX neither adds nor differentiates; keep it in "
            "bfloat16 or wider, and let the loss convert it."
        )


def _way_out(leaf: Any, dtype: Any, is_hparams: bool) -> str:
    """Returns what a leaf is instead, and the way out."""
    does = "has no derivative" if is_hparams else "is not trained"
    elsewhere = "and pass it as a part of data, or let the loss close over it"
    if jnp.issubdtype(dtype, jnp.bool_):
        return f"a mask or flag, which {does}; take it out, {elsewhere}"
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return f"a PRNG key, which {does}; take it out, and pass key=, of which each step gets one"
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return (
            "complex numbers, but derivatives are taken of real ones; keep the real and the "
            "imaginary part as two leaves, and join them inside the loss with jax.lax.complex"
        )
    is_key = dtype == jnp.uint32 and jnp.shape(leaf)[-1:] in ((2,), (4,))
    key = "; if it is a PRNG key, pass it as key=" if is_key else ""
    if is_hparams:
        return f"which has no derivative; write 1.0 for 1, or pass integers through data{key}"
    return (
        "which has no derivative; convert it to float32 if it is a weight; if it is an index or a "
        f"count, take it out, {elsewhere}{key}"
    )

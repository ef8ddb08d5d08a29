"""A loss whose batch is shared among devices, each of which takes its part of the examples.

With d devices and their parts B_1 ... B_d of a batch B, all of one size, a loss that is a mean over
examples is the mean of the parts' losses, and so is its gradient. Two linear maps say what that
means to every derivative, in both modes and of any order, where all devices hold the same
parameters (Shoeybi et al. 2019, section 3, call them f and g):

    share:  every device goes on with its copy of x;     its transpose adds up what comes back,
    total:  sum over the devices of what each has;       its transpose hands a copy to each.

Sums are of pairs, pairs of pairs and so on, in the devices' order, and not in the order in which
numbers arrive: the bits are the same on all devices and in every run, as a run backwards needs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from hgrad_jax.inputs.functions import require_function
from hgrad_jax.types import Array, Loss

BATCH_PARTS = "batch_parts"
"""The axis of a mesh whose devices share a batch."""


def data_parallel(loss: Loss) -> Loss:
    """Returns the mean of a loss over the devices, each of which evaluates its part of the batch.

    The same number as the loss of the whole batch, up to rounding, with all its derivatives. It
    goes wherever a loss does, in a program of `over_devices(..., batch_parts=d)`, or of `tune` or
    `sweep` with the same argument. Every device has all the data, makes the whole batch and takes
    rows k B / d to (k + 1) B / d of it; parameters and the optimizer's state are on every device.
    Communication is one sum a gradient, of as many numbers as it has.

    Args:
      loss: `loss(params, hparams, batch, key) -> scalar`, a *mean* over the examples of its batch,
        plus what does not depend on them. Every array of the batch has a leading axis of examples.
        A sum over examples comes out d times too small; batch normalization uses the statistics of
        a device's part; and each device draws its own dropout, from `fold_in(key, k)`.

    Returns:
      `loss(params, hparams, batch, key)`. It raises ValueError when it is traced if there are no
      devices to share the batch, or they cannot share it equally.

    Example:
      >>> import jax, jax.numpy as jnp, hgrad_jax as hg
      >>> def loss(params, hparams, batch, key):
      ...     return jnp.mean((batch - params) ** 2)
      >>> rule = hg.heavy_ball(hg.data_parallel(loss))
      >>> run = hg.Run(rule, num_steps=5, adjoint=hg.Reversible())
      >>> def hypergradient(rate):
      ...     arrays = (jnp.float32(0), {"learning_rate": rate, "momentum": 0.5}, jnp.arange(8.0))
      ...     return hg.value_and_hypergradient(lambda params, hparams, _: params**2, run, *arrays)
      >>> num_devices = len(jax.devices())  # one, or two, four or eight, for eight examples
      >>> found = hg.over_devices(hypergradient, in_axes=None, batch_parts=num_devices)(0.1)
      >>> print(f"{found.value:.2f} {int(found.info.mismatches)}")
      12.05 0
    """
    require_function(
        loss, "loss(params, hparams, batch, key)", "a function that returns a floating-point scalar"
    )

    def parallel(params: Any, hparams: Any, batch: Any, key: Array | None) -> Array:
        num_parts = _num_parts()
        if num_parts is None:
            raise ValueError(
                "the loss is data_parallel, but no devices share its batch here; call what trains "
                "through hg.over_devices(function, ..., batch_parts=d), or pass batch_parts=d to "
                "tune or sweep."
            )
        place = jax.lax.axis_index(BATCH_PARTS)
        part = _part(batch, place, num_parts)
        if key is not None:
            key = jax.random.fold_in(key, place)
        params, hparams = share((params, hparams))
        return total(loss(params, hparams, part, key)) / num_parts

    return parallel


def share(tree: Any) -> Any:
    """Returns the tree; its cotangents, of which each device has its own, are added up."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, _share.bind(*leaves))


def total(tree: Any) -> Any:
    """Returns the sum of the devices' trees; each device gets a copy of the cotangent."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, _total.bind(*leaves))


def worst_part(x: Array) -> Array:
    """Returns the largest of a number over the devices that share a batch; `x` where none do."""
    return x if _num_parts() is None else jax.lax.pmax(x, BATCH_PARTS)


def _num_parts() -> int | None:
    """Returns how many devices share a batch in the program that is being traced."""
    try:
        return jax.lax.axis_size(BATCH_PARTS)
    except NameError:
        return None


def _part(batch: Any, place: Array, num_parts: int) -> Any:
    shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
    if not shapes or len({shape[:1] for shape in shapes}) > 1 or () in shapes:
        raise ValueError(
            f"the batch of a data_parallel loss has shapes {[list(s) for s in shapes]}, which have "
            "no leading axis of examples in common; make one that batch_fn returns, or bind what "
            "is not of the examples into the loss."
        )
    size, rest = divmod(shapes[0][0], num_parts)
    if rest or not size:
        raise ValueError(
            f"the batch has {shapes[0][0]} examples, which {num_parts} devices cannot share "
            f"equally; make it a multiple of {num_parts}, or batch_parts a divisor of "
            f"{shapes[0][0]}."
        )
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(jnp.asarray(x), place * size, size), batch
    )


def _ordered_sums(*leaves: Array) -> list[Array]:
    """Returns the sum over the devices of each array, in one exchange for each dtype.

    A device gets its share of everybody's numbers, adds them up, and hands the sums to all: twice
    the numbers pass through each device, as in any all-reduce.
    """
    num_parts = jax.lax.axis_size(BATCH_PARTS)
    sums: list[Array] = list(leaves)
    for dtype in dict.fromkeys(x.dtype for x in leaves):
        places = [i for i, x in enumerate(leaves) if x.dtype == dtype]
        vector = jnp.concatenate([leaves[i].reshape(-1) for i in places])
        padded = jnp.pad(vector, (0, -vector.size % num_parts)).reshape(num_parts, -1)
        rows = jax.lax.all_to_all(padded, BATCH_PARTS, 0, 0)  # row k from device k
        mine = _pairwise(rows)
        whole = jax.lax.all_gather(mine, BATCH_PARTS, tiled=True)
        end = 0
        for i in places:
            begin, end = end, end + leaves[i].size
            sums[i] = whole[begin:end].reshape(leaves[i].shape)
    return sums


def _pairwise(rows: Array) -> Array:
    """Returns the sum of the rows, of neighbours first."""
    while len(rows) > 1:
        odd = rows[len(rows) // 2 * 2 :]
        rows = jnp.concatenate([rows[0 : len(rows) - 1 : 2] + rows[1::2], odd])
    return rows[0]


def _linear(name: str, function: Callable[..., list[Array]]) -> Any:
    """Returns a primitive of any number of arrays that `function` maps one by one, linearly."""
    primitive = jax.extend.core.Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(function)
    primitive.def_abstract_eval(lambda *avals: list(avals))
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=True))

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        return primitive.bind(*primals), _bind_known(primitive, tangents)

    def batch(args: Sequence[Any], axes: Sequence[Any]) -> tuple[list[Any], Sequence[Any]]:
        return primitive.bind(*args), axes

    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    return primitive


def _bind_known(primitive: Any, linear: Sequence[Any]) -> list[Any]:
    """Returns the primitive of those (co)tangents that are not known to be zero."""
    known = [i for i, x in enumerate(linear) if type(x) is not ad.Zero]
    found: list[Any] = list(linear)
    if known:
        for i, x in zip(known, primitive.bind(*(linear[i] for i in known)), strict=True):
            found[i] = x
    return found


def _transpose(primitive: Any, cotangents: Sequence[Any], *_: Any) -> list[Any]:
    return _bind_known(primitive, cotangents)


_share = _linear("share_among_batch_parts", lambda *leaves: list(leaves))
_total = _linear("total_over_batch_parts", _ordered_sums)
ad.primitive_transposes[_share] = functools.partial(_transpose, _total)
ad.primitive_transposes[_total] = functools.partial(_transpose, _share)

"""Trees as vectors."""

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.tools.vectors import layout, ravel, unravel, write_into


def test_write_into_is_ravel_whatever_is_batched():
    def written(tree, like):
        return write_into(jnp.full(7, jnp.nan), tree, like)

    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.asarray(7.0), "c": jnp.zeros((0, 4))}
    like = layout(tree)
    np.testing.assert_array_equal(written(tree, like), ravel(tree, like))
    np.testing.assert_array_equal(unravel(written(tree, like), like)["a"], tree["a"])

    def scaled(write, x, y):
        return write({"a": x * tree["a"], "b": y * tree["b"], "c": tree["c"]}, like)

    def twice(write):
        one = jax.vmap(lambda x, y: scaled(write, x, y), in_axes=(0, None))
        return jax.jit(jax.vmap(one, in_axes=(None, 0)))(jnp.arange(3.0), jnp.arange(5.0))

    np.testing.assert_array_equal(twice(written), twice(ravel))
    assert twice(ravel).shape == (5, 3, 7)


def test_write_into_batches_without_a_scatter():
    tree = {"a": jnp.ones((4, 2, 3)), "b": jnp.ones((4, 5))}
    like = layout(jax.tree.map(lambda x: x[0], tree))
    program = jax.make_jaxpr(jax.vmap(lambda tree: write_into(jnp.zeros(like.size), tree, like)))(
        tree
    )
    assert "scatter" not in str(program)
    assert "dynamic_update_slice" in str(program)

"""`Run`: what it refuses, how it is compared, and that all that takes one names it alike."""

import dataclasses
import inspect
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import pytest

import hgrad_jax as hg

TAKE_A_RUN = (
    hg.unroll,
    hg.vjp,
    hg.jacobian_of_final_params,
    hg.reversal_errors,
    hg.projections,
    hg.distances_to,
    hg.value_and_hypergradient,
    hg.compare,
    hg.plan,
    hg.check_hypergradient,
    hg.cotangent_norms,
    hg.meta_steps,
    hg.tune,
)


def loss(params, hparams, batch, key):
    return jnp.sum((params - 1.0) ** 2) / 2


RULE = hg.momentum(loss, learning_rate=0.1, momentum=0.5)


@pytest.mark.parametrize("function", TAKE_A_RUN, ids=lambda function: function.__name__)
def test_all_take_the_same_arguments_in_the_same_order(function):
    names = list(inspect.signature(function).parameters)
    first = ["objective"] if names[0] == "objective" else []
    assert names[: len(first) + 4] == [*first, "run", "params", "hparams", "data"]
    if first:
        assert names[5] == "outer_data"
    assert not {"num_steps", "batch_fn", "hparams_axes", "record", "adjoint"} & set(names)


@pytest.mark.parametrize("function", TAKE_A_RUN, ids=lambda function: function.__name__)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RULE, r"run is an update rule without its number of steps; pass hg.Run\(rule, num_steps"),
        (7, r"run is 7; it must be an hg.Run\(rule, num_steps=100\)"),
    ],
    ids=["rule", "number"],
)
def test_what_is_no_run(function, wrong, message):
    names = list(inspect.signature(function).parameters)
    given: dict[str, Any] = {name: None for name in names[:-1] if name in ("data", "outer_data")}
    given |= {"run": wrong, "params": jnp.ones(2), "hparams": {}}
    for name, value in (
        ("objective", lambda params, hparams, data: jnp.sum(params)),
        ("target_params", jnp.ones(2)),
        ("adjoints", [hg.Direct()]),
        ("memory", 1e6),
        ("num_meta_steps", 1),
        ("optimizer", optax.sgd(0.1)),
    ):
        given |= {name: value} if name in names else {}
    with pytest.raises(TypeError, match=message):
        function(**given)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: hg.Run(cast(Any, optax.sgd(0.1)), num_steps=3), TypeError, "from_optax"),
        (lambda: hg.Run(RULE, num_steps=0), ValueError, "num_steps is 0; a run has at least one"),
        (
            lambda: hg.Run(RULE, num_steps=cast(Any, lambda k: 3)),
            TypeError,
            "num_steps is a function, but a Run has one length; .* as lengths=",
        ),
        (
            lambda: hg.Run(RULE, num_steps=3, adjoint=cast(Any, hg.Direct)),
            TypeError,
            r"adjoint is .*; it must be an object such as Direct\(\)",
        ),
        (
            lambda: hg.Run(hg.sgd(loss), num_steps=3, adjoint=hg.Reversible()),
            ValueError,
            r"Reversible\(\) needs an update rule that",
        ),
        (
            lambda: hg.Run(RULE, num_steps=3, batch_fn=cast(Any, lambda data: data)),
            TypeError,
            r"is called as batch_fn\(data, t, key\)",
        ),
        (
            lambda: hg.Run(RULE, num_steps=3, record=cast(Any, 1)),
            TypeError,
            r"record is 1, but is called as record\(state, data\)",
        ),
    ],
    ids=["optax", "none", "function", "class", "one way", "batch_fn", "record"],
)
def test_what_it_refuses_before_there_are_arrays(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_it_is_a_static_argument():
    """Compiled once for runs that are equal, whatever their axes are written in."""
    traced = []

    def counted(run, hparams):
        traced.append(run.num_steps)
        return hg.unroll(run, jnp.zeros(2), hparams, None).params

    train = jax.jit(counted, static_argnums=0)
    rule = hg.heavy_ball(loss, momentum=0.5)
    rates = {"learning_rate": jnp.array([0.1, 0.2, 0.3])}
    one, same = (hg.Run(rule, num_steps=3, hparams_axes={"learning_rate": 0}) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    train(one, rates)
    train(same, rates)
    other = dataclasses.replace(one, adjoint=hg.Reversible())
    assert other != one
    train(other, rates)
    assert traced == [3, 3]


def test_it_does_not_change_with_the_dict_that_it_was_made_from():
    axes: dict[str, Any] = {"learning_rate": 0}
    rates = {"learning_rate": jnp.array([0.3, 0.02, 0.001])}  # a step each, or a number each
    rule = hg.heavy_ball(loss, momentum=0.5)
    train = jax.jit(lambda run: hg.unroll(run, jnp.zeros(3), rates, None).params, static_argnums=0)
    by_step = hg.Run(rule, num_steps=3, hparams_axes=axes)
    first = train(by_step)
    axes["learning_rate"] = None
    by_number = hg.Run(rule, num_steps=3, hparams_axes=axes)
    assert by_step != by_number
    assert jnp.all(train(by_step) == first)
    assert jnp.all(jnp.diff(first) == 0)
    assert jnp.all(jnp.diff(train(by_number)) < 0)


@pytest.mark.parametrize("axes", [{"rate": False}, {"rate": jnp.zeros(2)}, "rate"])
def test_axes_of_another_kind(axes):
    with pytest.raises(ValueError, match=r"hparams_axes has .* at .*; only 0 \(a schedule\)"):
        hg.Run(RULE, num_steps=3, hparams_axes=axes)


@pytest.mark.parametrize("function", [hg.compare, hg.plan, hg.cotangent_norms, hg.unroll])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": lambda key: jnp.ones(2)}, r"params is .*a function; .*: pass params\(key\)"),
        ({"hparams": {"a": "b"}}, r"hparams\['a'\] is 'b'"),
        ({"data": "mnist"}, "data is 'mnist'; data must be a pytree of arrays"),
    ],
    ids=["params", "hparams", "data"],
)
def test_all_refuse_alike_what_are_no_arrays(function, change, message):
    given = {"run": hg.Run(RULE, num_steps=2), "params": jnp.ones(2), "hparams": {}, "data": None}
    given |= change
    names = inspect.signature(function).parameters
    more = {"objective": lambda p, h, d: jnp.sum(p), "adjoints": [hg.Direct()], "memory": 1e6}
    given |= {name: value for name, value in more.items() if name in names}
    with pytest.raises(TypeError, match=message):
        function(**given)


def test_a_run_where_a_rule_is_meant():
    run: Any = hg.Run(RULE, num_steps=2)
    assert len(repr(run)) < 200
    with pytest.raises(TypeError, match=r"transition is Run\(.*\), where an update rule is meant"):
        hg.fit(run, jnp.ones(2), {}, None, num_epochs=1)


def test_one_run_serves_many_seeds():
    def noisy(params, hparams, batch, key):
        return loss(params, hparams, batch, None) + params @ jax.random.normal(key, (2,))

    run = hg.Run(hg.sgd(noisy, learning_rate=0.1), num_steps=3)

    def end(key):
        return hg.unroll(run, jnp.zeros(2), {}, None, key=key).params

    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.jit(jax.vmap(end))(keys)
    for i, key in enumerate(keys):
        assert jnp.allclose(many[i], jax.jit(end)(key), rtol=1e-6)

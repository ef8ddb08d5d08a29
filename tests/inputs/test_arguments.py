"""What settings may be: those of the wrong kind are refused by name, traced ones pass."""

# What users pass is wrong on purpose.
# pyright: reportArgumentType=false

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import hgrad_jax as hg
from hgrad_jax.data import load, validate_finite
from hgrad_jax.hyper import l2, over_windows, per_tensor
from hgrad_jax.models import MLP, BatchNorm, classification_loss, cosine, uniform


def loss(params, hparams, batch, key):
    return jnp.sum((params - 3.0) ** 2)


def modified(modifier):
    return hg.modified(hg.backpropagation, modifier)


WRONG = [
    (lambda: hg.momentum(loss, learning_rate=np.nan), "learning_rate is nan; it must be finite"),
    (lambda: hg.adam(loss, eps=np.inf), "eps is inf; it must be finite"),
    (lambda: hg.adam(loss, eps=-1.0), r"eps is -1\.0; it must be at least 0"),
    (lambda: hg.sgd(loss, learning_rate=lambda: 0.1), r"learning_rate takes \(\), but is called"),
    (lambda: hg.sgd(loss, learning_rate=object()), "learning_rate: a hyperparameter of the rule"),
    (lambda: hg.adam(loss, first_moment=None), "slots has None for 'first_moment'"),
    (lambda: hg.average(hg.sgd(loss), slot=hg.Slot(fraction_bits=64)), "fraction_bits=64; it must"),
    (lambda: hg.Reversible(share_gradient=np.ones(2)), "share_gradient is array.*True or False"),
    (lambda: hg.GMRES(max_steps=10**18), r"max_steps is .*; it must be a positive int below 2\*\*"),
    (lambda: hg.Neumann(np.inf), "step_size is inf"),
    (lambda: hg.field(3), "name is 3"),
    (lambda: uniform(0.0, np.inf), "high is inf; it must be finite"),
    (
        lambda: hg.Transition(None, loss, loss) and hg.average(hg.Transition(None, loss, loss)),
        "init",
    ),
    (lambda: hg.heavy_ball(int), "loss is the class int"),
    (
        lambda: hg.forward_gradient(num_directions=10**18),
        r"num_directions is 10+; .* 2\*\*31",
    ),
    (lambda: hg.sign_descent(np.inf), "learning_rate is inf; it must be finite"),
    (lambda: hg.sign_descent(jax.random.key(0)), r"(?s)learning_rate is .*a schedule"),
    (lambda: hg.nonnegative_adam(lambda: 0.1), r"learning_rate takes \(\), but is called"),
    (lambda: hg.Records("runs", is_whole=1), "is_whole is 1; it must be True or False"),
    (lambda: load("digits", download=None), "download is None; it must be True or False"),
    (lambda: cosine(np.nan), "scale is nan; it must be finite"),
    (lambda: cosine("0.1"), "scale is '0.1'; it must be a number"),
    (
        lambda: hg.Implicit(stationarity_tolerance=0),
        "stationarity_tolerance is 0; it must be a pos",
    ),
    (lambda: validate_finite(np.ones(2), name=3), "name is 3; it must be a name, a str"),
    (lambda: classification_loss(linen), "model is <module .*; pass a flax module"),
    (lambda: hg.over_devices(abs, in_axes=np.ones(2)), "in_axes is array.*; give 0 or None"),
    (lambda: hg.over_devices(lambda: 0)(jnp.ones(2)), r"function takes \(\), but is called as"),
    (lambda: l2(jnp.ones(2), jax.random.key(0)), "(?s)coefficients is .*; it must be a number"),
    (lambda: per_tensor().init(jnp.ones(2), jax.random.key(0)), "(?s)value is .*fills the small"),
    (lambda: over_windows(np.array(["a"]), 4), "values is array.*; it must be an array with one"),
    (lambda: over_windows(jnp.ones(2), 10**18), r"num_steps is 10+; .* below 2\*\*31"),
    (
        lambda: hg.check_gradient(lambda: 0.0, 1.0),
        r"loss takes \(\), but is called as loss\(params",
    ),
    (lambda: hg.check_gradient(lambda x: object(), 1.0), "loss returned something other than arr"),
    (lambda: hg.hvp(lambda x: object(), 1.0, 1.0), "loss returned a object; it must return one"),
    (
        lambda: hg.mixed_product(lambda x, h: x * h["l2"], 1.0, {"l1": 0.1}, 1.0),
        r"loss failed .* hparams of the shapes \(\), \{'l1': \(\)\} \(KeyError: 'l2'\)",
    ),
    (lambda: hg.sweep(lambda hparams, key, data: hparams, b"ab"), "settings is bytes; give a list"),
]


@pytest.mark.parametrize(("made", "message"), WRONG)
def test_settings_of_the_wrong_kind(made, message):
    with pytest.raises((TypeError, ValueError), match=message):
        made()


def test_a_layer_of_too_many_units():
    """Which ended the process, where memory for it was asked for."""
    with pytest.raises(ValueError, match=r"features is \(10+, 3\); give widths"):
        MLP((10**18, 3)).init(jax.random.key(0), jnp.ones((1, 2)), train=False)
    model = MLP((3, 3), bias_init=lambda key, shape, dtype: object())
    with pytest.raises(TypeError, match=r"bias_init returned .*; it must return an array"):
        model.init(jax.random.key(0), jnp.ones((1, 2)), train=False)
    with pytest.raises(ValueError, match="epsilon is nan"):
        BatchNorm(epsilon=np.nan).init(jax.random.key(0), jnp.ones((2, 2)), train=True)


def trained(**settings):
    rule = hg.heavy_ball(loss, **{"learning_rate": 0.1, "momentum": 0.5} | settings)
    return hg.unroll(hg.Run(rule, num_steps=1), jnp.ones(2), {}, None, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": ()}, r"the decay of 'velocity' \(momentum\) is not a prefix"),
        ({"momentum": jnp.ones(3)}, r"the decay of 'velocity' \(momentum\) has shape \(3,\)"),
        ({"gradient": modified(hg.clip_by_value((0.1,)))}, "bound is not a prefix"),
        ({"gradient": modified(hg.clip_by_norm([1.0]))}, r"bound is \[1.0\], but clip_by_norm"),
        ({"gradient": modified(hg.add_weight_decay({}))}, "strength is not a prefix"),
        (
            {"gradient": modified(lambda gradient, params, hparams: object())},
            "what the modifier returned is <object",
        ),
        (
            {"gradient": modified(hg.RandomModifier(lambda *args: "0"))},
            "what modify returned is '0'",
        ),
    ],
)
def test_settings_that_do_not_fit_the_parameters(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        trained(**settings)


def test_integers_beyond_int32_are_numbers():
    assert l2(jnp.ones(2), 10**18) == np.float32(10**18)


def test_a_state_that_is_no_tree_of_arrays():
    rule = hg.sgd(loss)
    own = hg.Transition(lambda params, hparams: object(), rule.step, rule.params)
    with pytest.raises(TypeError, match=r"transition.init returned <object .*a pytree of arrays"):
        hg.unroll(hg.Run(own, num_steps=1), jnp.ones(2), {"learning_rate": 0.1}, None)


@pytest.mark.parametrize("num_steps", [[1], {}, np.ones(2)])
def test_numbers_of_steps_that_are_no_numbers(num_steps):
    with pytest.raises(TypeError, match=r"num_steps is .*; it must be an int"):
        hg.Run(hg.sgd(loss), num_steps=num_steps)


@pytest.mark.parametrize("length", [[1], {}, np.ones(2)])
def test_lengths_that_are_no_numbers(length):
    with pytest.raises(TypeError, match=r"lengths\(0\) is .*; it must be an int"):
        hg.tune(
            lambda params, hparams, data: jnp.sum(params**2),
            hg.Run(hg.sgd(loss), num_steps=1),
            jnp.ones(2),
            {"learning_rate": 0.1},
            None,
            None,
            num_meta_steps=1,
            lengths=lambda meta_step: length,
            optimizer=optax.sgd(0.1),
            progress=False,
        )


def test_too_many_steps():
    with pytest.raises(ValueError, match=r"num_steps is 10+; steps are counted in int32"):
        hg.unroll(hg.Run(hg.sgd(loss), num_steps=10**18), 1.0, {"learning_rate": 0.1}, None)


@pytest.mark.parametrize("axes", [np.ones(2), jnp.arange(2), "text"])
def test_axes_that_are_arrays(axes):
    with pytest.raises(ValueError, match="hparams_axes has"):
        hg.unroll(
            hg.Run(hg.sgd(loss), num_steps=2, hparams_axes=axes), 1.0, {"learning_rate": 0.1}, None
        )


def test_traced_settings_pass():
    @jax.jit
    def end(rate, decay):
        rule = hg.heavy_ball(loss, learning_rate=rate, momentum=lambda hparams: decay)
        return hg.unroll(hg.Run(rule, num_steps=3), jnp.float32(0), {}, None).params

    by_hand = hg.heavy_ball(loss, learning_rate=0.1, momentum=0.5)
    wanted = hg.unroll(hg.Run(by_hand, num_steps=3), jnp.float32(0), {}, None).params
    assert end(0.1, 0.5) == wanted
    assert jnp.isfinite(jax.grad(end)(0.1, 0.5))


def test_a_number_that_int32_cannot_hold_is_a_float():
    assert hg.Clip(state=10**18).state == 1e18
    rule = hg.project_to_box(hg.sgd(loss, learning_rate=0.5), lower=0, upper=10**18)
    assert hg.unroll(hg.Run(rule, num_steps=1), jnp.float32(0), {}, None).params == 3.0

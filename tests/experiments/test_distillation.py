"""Data that are learned: ten images of the digits, through the training on them alone.

Maclaurin, Duvenaud and Adams (2015, section 3.3), with one image for each class.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hgrad_jax as hg
from hgrad_jax.data import load, shared_examples, split
from hgrad_jax.models import MLP, classification_metrics, cross_entropy

MODEL = MLP((12, 10), activation=jnp.tanh)
RATES = {"learning_rate": None, "momentum": None, "images": None}
DIGITS, VALID = split(load("digits").train, (300, 300), seed=0)


def logits(params, inputs):
    return jnp.asarray(MODEL.apply({"params": params}, inputs, train=False))


def loss(params, hparams, batch, key):
    """The labels are data, the images are hyperparameters."""
    return cross_entropy(logits(params, hparams["images"]), batch)


def objective(params, hparams, valid):
    return cross_entropy(logits(params, valid.inputs), valid.labels)


RUN = hg.Run(hg.momentum(loss), num_steps=40, hparams_axes=RATES)
LABELS = np.arange(10, dtype=np.int32)


def init_params(key):
    return MODEL.init(key, jnp.zeros((1, 64)), train=False)["params"]


def first_of_each_class():
    places = [np.flatnonzero(DIGITS.labels == label)[0] for label in LABELS]
    rates = {"learning_rate": jnp.float32(1.0), "momentum": jnp.float32(0.9)}
    return rates | {"images": jnp.asarray(DIGITS.inputs[places])}


@functools.partial(jax.jit, static_argnames="adjoint")
def hypergradient(hparams, key, adjoint):
    run = dataclasses.replace(RUN, adjoint=adjoint)
    return hg.value_and_hypergradient(objective, run, init_params(key), hparams, LABELS, VALID)


def test_hypergradients_of_learned_images_equal_the_stored_ones():
    hparams = first_of_each_class()
    for seed in range(2):
        key = jax.random.key(seed)
        exact = hypergradient(hparams, key, hg.Reversible(smallest_decay=0.9))
        stored = hypergradient(hparams, key, hg.Direct())
        assert bool(hg.check(exact.info).is_restored)
        scale = np.linalg.norm(stored.hparams["images"])
        for name, want in stored.hparams.items():
            # The rate's is a sum that nearly cancels: its rounding is that of the terms.
            assert np.linalg.norm(exact.hparams[name] - want) < 1e-5 * scale, name
        assert np.all(np.linalg.norm(stored.hparams["images"], axis=1) > 1e-4)


def test_ten_learned_images_are_better_to_train_on_than_ten_real_ones():
    start = first_of_each_class()
    images = np.asarray(start["images"])
    assert not len(shared_examples((images,), (VALID.inputs,)))
    out = hg.tune(
        objective,
        RUN,  # by Direct(): equal, as above, and sooner compiled
        init_params,
        start,
        LABELS,
        VALID,
        optimizer=optax.adam(0.03),
        num_meta_steps=25,
        key=jax.random.key(0),
        metrics=classification_metrics(MODEL),
        progress=False,
    )
    first, last = (out.history.value[at, 0] for at in (0, -1))
    assert last < 0.7 * first
    accuracy = out.history.metrics["valid_accuracy"]
    assert accuracy[-1] > accuracy[0] + 0.05
    # On seeds that were not tuned on, and with the rates of the start: the images make it better.
    for seed in range(100, 103):
        learned = start | {"images": out.hparams["images"]}
        before, after = (
            hypergradient(h, jax.random.key(seed), hg.Direct()).value for h in (start, learned)
        )
        assert after < 0.8 * before

"""Short trainings by `fit`, of a quadratic and on digits, which several test modules run."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import hgrad_jax as hg
from hgrad_jax.data import Dataset, load, minibatches
from hgrad_jax.models import MLP, classification_loss, classification_metrics

KEY = jax.random.key(3)


@functools.cache
def digits():
    """200 digits to train on and 100 to validate on."""
    train, valid = load("digits")
    return Dataset(*(x[:200] for x in train)), Dataset(*(x[:100] for x in valid))


MODEL = MLP((12, 10))
LOSS = classification_loss(MODEL)
DROPPED = classification_loss(MLP((12, 10), dropout_rate=0.1))
METRICS = classification_metrics(MODEL)
HPARAMS = {"learning_rate": 0.1, "momentum": 0.9}


@functools.cache
def initial():
    return MODEL.init(KEY, digits()[0].inputs[:1], train=False)["params"]


def quadratic(params, hparams, batch, key):
    """A loss whose training is known: with rate lr, x' = (1 - lr) x."""
    return jnp.sum(params**2) / 2


def fit_quadratic(num_epochs: int = 4, rate: Any = 0.5, **settings: Any) -> Any:
    settings = {
        "steps_per_epoch": 2,
        "loss": quadratic,
        "metrics": lambda params, data: {"loss": jnp.sum(params**2) / 2},
    } | settings
    rule = hg.sgd(quadratic, learning_rate=hg.field("rate"))
    given = {"rate": rate}
    return hg.fit(rule, jnp.array([1.0]), given, jnp.zeros(1), num_epochs=num_epochs, **settings)


def fit_digits(rule=None, hparams=None, train=None, num_epochs=3, **settings) -> Any:
    settings = {"key": KEY, "batch_fn": minibatches(40)} | settings
    rule = rule or hg.momentum(LOSS)
    train = train or digits()[0]
    return hg.fit(rule, initial(), hparams or HPARAMS, train, num_epochs=num_epochs, **settings)

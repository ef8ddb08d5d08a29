"""Trains a small network on digits with checkpoints; `test_fit` kills it and runs it again.

Run as `python -m tests.shared.fit_child FOLDER RESULT`: checkpoints in FOLDER, bits to RESULT.
"""

import sys
from typing import Any

import jax
import numpy as np

import hgrad_jax as hg
from hgrad_jax.data import load, shuffled
from hgrad_jax.models import MLP, classification_loss, classification_metrics


def train(folder, num_epochs=12):
    """Returns the Fit of the run whose checkpoints are in a folder."""
    train, valid = load("digits")
    model = MLP((24, 10))
    loss = classification_loss(model)
    params = model.init(jax.random.key(0), train.inputs[:1], train=False)["params"]
    return hg.fit(
        hg.adam(loss),
        params,
        {"learning_rate": 3e-3},
        train,
        valid,
        num_epochs=num_epochs,
        key=jax.random.key(1),
        batch_fn=shuffled(50, seed=0),
        epoch_hparams=lambda hparams, epoch: {
            "learning_rate": hparams["learning_rate"] * 0.9**epoch
        },
        loss=loss,
        metrics=classification_metrics(model),
        early_stopping=hg.EarlyStopping("valid_accuracy", patience=None, is_maximized=True),
        checkpoints=None if folder is None else hg.Checkpoints(folder),
        progress=False,
    )


def bits(out):
    """Returns every number of a Fit that does not tell the time."""
    trees = (out.params, out.state, out.best, out.history._replace(seconds=None))
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(trees))}


def main():
    folder, result = sys.argv[1:]
    arrays: Any = bits(train(folder))
    np.savez(result, **arrays)


if __name__ == "__main__":
    main()

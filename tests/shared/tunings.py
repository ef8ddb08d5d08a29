"""How the tests of `tune` compare outcomes and read records."""

import json

import jax
import numpy as np

from tests.shared import tune_child


def same_bits(ours, theirs):
    a, b = (tune_child.bits(out) for out in (ours, theirs))
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def read_lines(folder):
    """Every line of the records; raises if one is half-written."""
    path = folder / "meta_steps.jsonl"
    text = path.read_text() if path.exists() else ""
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def assert_close(found, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, want)

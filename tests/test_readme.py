"""The README's program runs as printed, and its hypergradients are Direct()'s."""

import pathlib
import re

import jax
import numpy as np

import hgrad_jax as hg

README = pathlib.Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def program(adjoint: str) -> dict:
    (code,) = [block for block in blocks() if "def loss" in block]
    names: dict = {}
    exec(
        compile(code.replace("hg.Reversible(smallest_decay=0.8)", adjoint), str(README), "exec"),
        names,
    )
    return names


def test_the_program_runs_and_agrees_with_direct(capsys):
    exact = program("hg.Reversible(smallest_decay=0.8)")
    stored = program("hg.Direct()")
    assert "learning_rate" in capsys.readouterr().out
    ours, theirs = (
        jax.grad(names["validation_loss"])(names["hparams"]) for names in (exact, stored)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(ours)) == 52
    for name in theirs:
        assert np.linalg.norm(ours[name] - theirs[name]) <= 1e-4 * np.linalg.norm(theirs[name]), (
            name
        )


def test_every_name_that_the_readme_calls_exists():
    for name in set(re.findall(r"\bhg\.(\w+)\(", README.read_text())):
        assert hasattr(hg, name), name


def test_the_tools_run_on_the_program(capsys):
    (code,) = [block for block in blocks() if "def objective" in block]
    exec(compile(code, str(README), "exec"), program("hg.Reversible(smallest_decay=0.8)"))
    text = capsys.readouterr().out
    assert "52 hyperparameters, 50 steps" in text
    assert "WRONG" not in text

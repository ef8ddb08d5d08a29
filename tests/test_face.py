"""What a user sees of the package before reading any of it."""

import ast
import importlib.metadata
import inspect
import types
from pathlib import Path

import hgrad_jax as hg


def test_all_that_is_imported_is_public_and_nothing_else():
    tree = ast.parse(Path(hg.__file__).read_text())
    imported = [
        alias.asname or alias.name
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    ]
    assert sorted(hg.__all__) == sorted(imported)
    assert set(dir(hg)) == {*imported, "__version__"}
    modules = [name for name in dir(hg) if isinstance(getattr(hg, name), types.ModuleType)]
    assert modules == ["hyper", "online"]


def test_the_version_is_the_installed_one():
    assert hg.__version__ == importlib.metadata.version("hgrad_jax")


def test_signatures_show_no_inner_functions():
    for name in hg.__all__:
        shown = getattr(hg, name)
        if callable(shown) and not (isinstance(shown, type) and issubclass(shown, Exception)):
            assert "<locals>" not in str(inspect.signature(shown)), name
    assert "learning_rate: " in str(inspect.signature(hg.adam))
    assert "= field('learning_rate')" in str(inspect.signature(hg.adam))

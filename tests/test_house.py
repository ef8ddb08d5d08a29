"""The plan of the package: rooms that import only what is below them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import hgrad_jax

PACKAGE = Path(hgrad_jax.__file__).parent
PLAN = (PACKAGE / "README.md").read_text()
ROOMS = re.findall(r"^([a-z_]+)(?:/|\.py) {2,}\S", PLAN, re.MULTILINE)
"""From the top down, as drawn."""


def module_of(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported(file):
    """Returns the modules of the package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "") in MODULES:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in MODULES else node.module


GRAPH = {module: set(imported(file)) for module, file in MODULES.items() if module != "hgrad_jax"}


def room(module):
    return module.split(".")[1]


def test_the_plan_has_all_rooms_and_no_other():
    rooms = {room(module) for module in GRAPH}
    assert len(ROOMS) == len(set(ROOMS))
    assert set(ROOMS) == rooms
    assert len(GRAPH) > 100


def test_the_readme_draws_the_same_plan():
    tree = PLAN[PLAN.index("```") : PLAN.rindex("```")]
    assert tree in (PACKAGE.parent / "README.md").read_text()


def test_the_tests_are_in_rooms_of_the_same_names():
    folders = {path.name for path in (PACKAGE.parent / "tests").iterdir() if path.is_dir()}
    assert folders - {"__pycache__", "campaign", "experiments", "fuzz", "shared"} <= set(ROOMS)


def test_imports_run_downwards():
    upwards = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others - {"hgrad_jax"}
        if ROOMS.index(room(other)) < ROOMS.index(room(module))
    ]
    assert upwards == []


def test_no_module_imports_itself_by_others():
    left = {module: set(others) & GRAPH.keys() for module, others in GRAPH.items()}
    while left:
        # A package's own file may pass on what its modules make; they must not read it back.
        free = {module for module, others in left.items() if not others & left.keys() - {module}}
        assert free, f"a cycle among {sorted(left)}"
        left = {module: others for module, others in left.items() if module not in free}


def test_the_core_needs_jax_and_little_else():
    """A hypergradient, in a process that can import none of what the other rooms use."""
    program = """
import sys
sys.modules.update(dict.fromkeys(["flax", "tensorflow_datasets", "matplotlib", "orbax", "rich"]))
import jax, hgrad_jax as hg
rule = hg.heavy_ball(lambda p, h, b, k: h * p**2, learning_rate=0.1, momentum=0.5)
end = lambda h: hg.unroll(hg.Run(rule, num_steps=1), 1.0, h, None).params
print(round(float(jax.grad(end)(1.0)), 4))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (out.stdout.strip(), out.returncode) == ("-0.2", 0), out.stderr

"""Prints the oldest versions that `pyproject.toml` allows, as pip's constraints."""

import pathlib
import re
import tomllib

PROJECT = pathlib.Path(__file__).parent.parent / "pyproject.toml"


def oldest(text: str) -> list[str]:
    """Returns `name==version` for every requirement with a lower bound.

    >>> oldest('[project]\\nname = "x"\\ndependencies = ["jax>=0.10,<0.13", "rich"]')
    ['jax==0.10']
    """
    project = tomllib.loads(text)["project"]
    required = [*project["dependencies"], *project.get("optional-dependencies", {}).get("test", [])]
    bounds = (re.match(r"([\w-]+)>=([\d.]+)", requirement) for requirement in required)
    return sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound})


if __name__ == "__main__":
    print(*oldest(PROJECT.read_text()), sep="\n")

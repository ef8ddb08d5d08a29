"""What all experiments share: a command line from a dataclass, and results as lines of JSON."""

import argparse
import dataclasses
import importlib.metadata
import inspect
import json
import math
import os
import platform
import re
import shlex
import sys
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hgrad_jax.tools.files import append_line
from hgrad_jax.training.folder import CheckpointError
from hgrad_jax.training.interruption import Interrupted, interruption

C = TypeVar("C")
PACKAGES = ("hgrad_jax", "jax", "jaxlib", "numpy", "optax", "flax")


def option(default: Any, explanation: str, choices: Sequence[Any] | None = None) -> Any:
    """Returns a dataclass field that `parse` makes an option of, with its explanation for --help.

    Args:
      default: the value if the option is not given; it must be hashable.
      explanation: one line, with the unit or range.
      choices: the values allowed; None for all of the type.
    """
    return dataclasses.field(default=default, metadata={"help": explanation, "choices": choices})


def parse(config_class: type[C], argv: Sequence[str] | None, description: str | None) -> C:
    """Returns the configuration that a command line asks for.

    A field `num_steps` is the option `--num-steps`. Its type is the annotation: str, int, float,
    Path, bool (`--x`, `--no-x`), `tuple[int, ...]` (several words), or one of these `| None`.

    Args:
      config_class: a frozen dataclass whose fields are `option`s. A ValueError of its
        `__post_init__` ends the program as a wrong option does.
      argv: the words after the program's name; None for those of this process.
      description: what --help says about the program, often its docstring: paragraphs, lists whose
        items begin with "- ", and lines with four spaces before them, which stay as they are.

    Raises:
      SystemExit: 0 after --help; 2 after a message for wrong options.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     num_steps: int = option(100, "training steps")
    ...     widths: tuple[int, ...] = option((50, 50), "hidden units of each layer")
    >>> parse(Config, ["--widths", "7"], "An example.")
    Config(num_steps=100, widths=(7,))
    """
    spec = sys.modules["__main__"].__spec__
    is_ours = spec is not None and spec.name.startswith("experiments.")
    name = spec.name if spec is not None and is_ours else config_class.__module__
    prog = f"python -m {name.removesuffix('.config').removesuffix('.__main__')}"
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [options]",
        description=inspect.cleandoc(description or ""),
        formatter_class=_HelpFormatter,
    )
    hints = typing.get_type_hints(config_class)
    fields = dataclasses.fields(typing.cast(Any, config_class))
    for field in fields:
        _add_option(parser, field, hints[field.name])
    given = vars(parser.parse_args(argv))
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    seed = values.get("seed")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        parser.error(f"seed is {seed}; it must be in [0, 2**32).")
    try:
        return config_class(**values)
    except ValueError as error:
        parser.error(str(error))


def environment() -> dict[str, Any]:
    """Returns what a result depends on besides its configuration: versions, device and dtype.

    >>> sorted(environment())
    ['cpus', 'device', 'dtype', 'machine', 'platform', 'versions', 'xla_flags']
    """
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "platform": device.platform,
        "device": device.device_kind,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "dtype": str(jnp.result_type(float)),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def write_json_line(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Appends `record` to a file as one line of JSON, which is on the disk on return.

    Arrays become lists; infinite and NaN numbers, which JSON does not have, become null.

    Args:
      path: the file; it and its folder are made if need be.
      record: JSON values, arrays, paths, and containers of them.
    """
    append_line(Path(path), json.dumps(_plain(record), allow_nan=False))


def script(main: Callable[[], Any]) -> None:
    """Runs a program; Ctrl-C, SIGTERM, and files that cannot be written end it with a sentence.

    Raises:
      SystemExit: 130 after Ctrl-C and 143 after SIGTERM, as shells count; 1 with the sentence.
    """
    try:
        with interruption(lambda: _INTERRUPTED):
            main()
    except Interrupted as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(128 + error.signum)
    except (OSError, CheckpointError) as error:
        raise SystemExit(f"error: {error}") from error


_INTERRUPTED = (
    "interrupted; what has been written is whole, and the same command goes on from it where the "
    "experiment keeps records, and else begins anew."
)


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps a description paragraph by paragraph, where argparse makes one of all."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = (re.split(r"\n(?=- |    )", block) for block in text.split("\n\n"))
        return "\n\n".join(
            "\n".join(_wrapped(line, width, indent) for line in block) for block in blocks
        )


def _wrapped(text: str, width: int, indent: str) -> str:
    """Returns a paragraph or an item of a list in lines of at most `width`; a command as it is."""
    if text.startswith("    "):
        return indent + text
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=indent,
        subsequent_indent=indent + ("  " if text.startswith("- ") else ""),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field, hint: Any) -> None:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    shown: Any = field.default
    settings: dict[str, Any] = {"type": hint, "choices": field.metadata["choices"]}
    if typing.get_origin(hint) is tuple:
        settings = {"type": typing.get_args(hint)[0], "nargs": "+"}
        shown = shlex.join(map(str, shown))
    elif hint is bool:
        settings = {"action": argparse.BooleanOptionalAction}
        shown = "on" if shown else "off"
    if not settings.get("choices"):
        settings |= {} if hint is bool else {"metavar": field.name.rpartition("_")[2].upper()}
    explanation = field.metadata["help"]
    if shown is not None:
        explanation += f" (default: {shown})"
    explanation = explanation.replace("%", "%%")
    flag = "--" + field.name.replace("_", "-")
    parser.add_argument(flag, default=field.default, help=explanation, **settings)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package != "hgrad_jax":
            return None
        # Run from a checkout without an installation.
        project = Path(__file__).parents[1] / "pyproject.toml"
        return tomllib.loads(project.read_text())["project"]["version"]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value

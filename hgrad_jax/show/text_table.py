"""Tables in plain text: columns of equal width, and what adjoints and sizes in bytes are called."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from hgrad_jax.runs.adjoint import Adjoint


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Returns the rows as lines of columns of equal width, two spaces apart.

    Args:
      rows: cells, as many in each row; the head, if there is one, is the first.
      left: which columns are flush left; negative ones count from the end. The others are flush
        right.

    >>> rows = [["adjoint", "s", ""], ["Direct()", "0.25", "fits"]]
    >>> aligned(rows, left=(0, -1))
    ['adjoint      s', 'Direct()  0.25  fits']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    flush_left = {i % len(widths) for i in left}
    return [
        "  ".join(
            cell.ljust(width) if i in flush_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def in_bytes(size: float) -> str:
    """Returns a number of bytes in three digits.

    >>> in_bytes(2_408_000_000)
    '2.41 GB'
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} bytes"


def name_of(adjoint: Adjoint) -> str:
    """Returns how the adjoint is written, without the settings that are the default.

    >>> from hgrad_jax.adjoints.reversible import Reversible
    >>> name_of(Reversible(smallest_decay=0.9))
    'Reversible(smallest_decay=0.9)'
    """
    if not dataclasses.is_dataclass(adjoint) or isinstance(adjoint, type):
        return repr(adjoint)
    settings = [
        f"{f.name}={getattr(adjoint, f.name)!r}"
        for f in dataclasses.fields(adjoint)
        if getattr(adjoint, f.name) != _default(f)
    ]
    text = f"{type(adjoint).__name__}({', '.join(settings)})"
    return re.sub(r"<function (?:\S+\.)?(\S+) at 0x[0-9a-f]+>", r"\1", text)


def _default(field: dataclasses.Field) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()

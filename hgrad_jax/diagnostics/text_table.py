"""Tables in plain text: columns of equal width, and sizes in bytes to go in them."""

from collections.abc import Sequence


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

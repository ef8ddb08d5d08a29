"""A progress bar with rates. rich is imported when a bar is asked for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

Update = Callable[[str], None]
"""`update(caption)`, once an epoch or meta-step."""


@contextlib.contextmanager
def progress_bar(
    is_shown: bool | None, unit: str, num_units: int, num_done: int
) -> Iterator[Update]:
    """Shows a bar of epochs or meta-steps on standard error while the context lasts.

    Args:
      is_shown: None for whether standard error is a terminal or a notebook.
      unit: what is counted.
      num_units: how many there are to be.
      num_done: how many there are already.

    Yields:
      What is to be called after every one.
    """
    if is_shown is False:
        yield lambda caption: None
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    console = Console(stderr=True)
    # In a narrow terminal the caption, which alone may wrap, gives way to the bar.
    columns = (
        TextColumn(unit, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        BarColumn(bar_width=8, table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[shown]}", table_column=Column()),
    )
    is_disabled = is_shown is None and not (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, disable=is_disabled) as bar:
        task = bar.add_task("", total=num_units, completed=num_done, shown="")

        def update(caption: str) -> None:
            bar.update(task, advance=1, shown=caption)

        yield update


def caption(metrics: Mapping[str, float], rate: float) -> str:
    """Returns what stands beside the bar: training metrics, and those of validation in brackets.

    >>> caption({"train_loss": 0.31234, "valid_loss": 0.4, "train_count": 7.0}, 1234.5)
    '1,234 steps/s, loss 0.312 (0.4), count 7'
    """
    shown = [f"{rate:,.0f} steps/s" if rate >= 10 else f"{rate:.2g} steps/s"]
    for name in dict.fromkeys(name.partition("_")[2] for name in metrics):
        parts = (metrics.get(f"train_{name}"), metrics.get(f"valid_{name}"))
        train, valid = ("" if value is None else f"{value:.3g}" for value in parts)
        shown.append(f"{name} {train}" + (f" ({valid})" if valid else ""))
    return ", ".join(shown)

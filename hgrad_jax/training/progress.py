"""A progress bar with rates. rich is imported when a bar is asked for."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

Update = Callable[[Mapping[str, float], float], None]
"""`update(metrics, steps_per_second)`, once an epoch."""


@contextlib.contextmanager
def progress_bar(is_shown: bool | None, num_epochs: int, num_done: int) -> Iterator[Update]:
    """Shows a bar of epochs on standard error while the context lasts.

    Args:
      is_shown: None for whether standard error is a terminal or a notebook.
      num_epochs: how many epochs there are to be.
      num_done: how many there are already.

    Yields:
      What is to be called after every epoch.
    """
    if is_shown is False:
        yield lambda metrics, rate: None
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        Remaining(),
        TextColumn("{task.fields[shown]}"),
    )
    is_disabled = is_shown is None and not (console.is_terminal or console.is_jupyter)
    with Progress(*columns, console=console, disable=is_disabled) as bar:
        task = bar.add_task("", total=num_epochs, completed=num_done, shown="")

        def update(metrics: Mapping[str, float], rate: float) -> None:
            bar.update(task, advance=1, shown=caption(metrics, rate))

        yield update


def caption(metrics: Mapping[str, float], rate: float) -> str:
    """Returns what stands beside the bar.

    >>> caption({"train_loss": 0.31234, "valid_accuracy": 0.9}, 1234.5)
    '1,234 steps/s, train loss 0.3123, valid accuracy 0.9'
    """
    speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    shown = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())
    return ", ".join([f"{speed} steps/s", *shown])

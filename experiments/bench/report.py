"""What `bench` prints."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

UNKNOWN = "-"


def print_table(console: Console, records: Sequence[dict[str, Any]]) -> None:
    """Prints a line for each record of the benchmark, in at most 80 columns."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("case", "T", "method", "seconds", "ratio", "temp MB", "compile s", "error"):
        side = "left" if column in ("case", "method") else "right"
        table.add_column(column, justify=side, no_wrap=True)
    for record, following in zip(records, [*records[1:], None], strict=True):
        temp_bytes = record["temp_bytes"]
        table.add_row(
            record["case"].rpartition("-")[0],
            str(record["num_steps"]),
            record["program"],
            _shown("{:.4g}", record["min_seconds"]),
            _shown("{:.2f}", record["ratio"]),
            _shown("{:.1f}", None if temp_bytes is None else temp_bytes / 1e6),
            _shown("{:.1f}", record["compile_seconds"]),
            _shown("{:.0e}", record.get("relative_error")),
            end_section=following is None or following["case"] != record["case"],
        )
    console.print(table)


def print_summary(
    console: Console, records: Sequence[dict[str, Any]], *, plain: str, isolated: str
) -> None:
    """Prints what the columns mean, what the isolation costs and where exact reversal loses."""
    console.print(
        "seconds: the least of the repeats. ratio: to the floor, plain steps plus gradient + HVP. "
        "error: the greatest relative one of the hypergradient's parts, against the first method "
        "of the case that ran.",
        highlight=False,
    )
    seconds = {(r["case"], r["program"]): r["min_seconds"] for r in records}
    losses = []
    for case in dict.fromkeys(record["case"] for record in records):
        bare, apart = seconds[case, plain], seconds[case, isolated]
        if bare and apart:
            console.print(
                f"{case}: isolating the gradient changes plain steps' time by "
                f"{apart / bare - 1:+.1%}.",
                highlight=False,
            )
        direct, exact = seconds[case, "Direct()"], seconds[case, "Reversible()"]
        if direct and exact and exact > direct:
            losses.append((exact, f"{case}, {exact / direct:.2f} times as long"))
    lost = min(losses)[1] if losses else "none where both ran"
    console.print(f"Smallest case where Reversible() is slower than Direct(): {lost}.")


def _shown(form: str, value: float | None) -> str:
    return UNKNOWN if value is None else form.format(value)

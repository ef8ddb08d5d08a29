"""The lines that the campaigns print at the end of a test run, from what their tests recorded."""

from collections import Counter
from typing import Any

REFUSED, FLAGGED, RIGHT, SILENT = "refused", "flagged", "right", "silent"
"""What a planted fault comes to; see `tests.campaign.faults`."""


def lines(reporter: Any) -> list[str]:
    """Returns a line for each campaign, of the tests of it that were run."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in reporter.stats.get(outcome, [])
        if getattr(report, "when", None) == "call"
    ]
    exactness = _recorded(reports, "exactness")
    faults = _recorded(reports, "fault")
    return ([_exactness(exactness)] if exactness else []) + ([_faults(faults)] if faults else [])


def _recorded(reports: list[Any], name: str) -> list[Any]:
    return [value for report in reports for key, value in report.user_properties if key == name]


def _exactness(figures: list[dict[str, Any]]) -> str:
    largest = {}
    for figure in figures:
        dtype = figure["dtype"]
        if not figure["is_by_float64"]:
            largest[dtype] = max(largest.get(dtype, 0.0), figure["error"])
    restored = sum(figure["is_restored"] for figure in figures)
    by_float64 = sum(figure["is_by_float64"] for figure in figures)
    undetermined = sum(figure["is_undetermined"] for figure in figures)
    errors = ", ".join(f"{error:.1e} ({dtype})" for dtype, error in sorted(largest.items()))
    return (
        f"exactness: {len(figures)} configurations of {len({f['net'] for f in figures})} nets, "
        f"{restored} restored bit for bit, largest difference from Direct {errors}; "
        f"{by_float64} ill-conditioned, compared with float64 or neighbours, "
        f"of which {undetermined} with decays of Adam that 16 bits do not determine"
    )


def _faults(outcomes: list[str]) -> str:
    count = Counter(outcomes)
    return (
        f"faults: {len(outcomes)} planted, {count[REFUSED]} refused, {count[FLAGGED]} flagged, "
        f"{count[RIGHT]} right, {count[SILENT]} silent"
    )

"""What the figures of the diagnostics share. Matplotlib is imported when a figure is drawn."""

from typing import Any

import numpy as np


def positive(values: np.ndarray) -> np.ndarray:
    """Returns the values with NaN, which is not drawn, for those that a log scale cannot show."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def new_axes(count: int = 1) -> Any:
    """Returns an axis of a new matplotlib figure, or an array of several side by side."""
    from matplotlib.figure import Figure

    width = 6 if count == 1 else 4.5 * count
    return Figure(figsize=(width, 4), layout="constrained").subplots(1, count)

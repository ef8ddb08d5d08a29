"""Scripts that make one figure or table each: `python -m experiments.NAME --help`."""

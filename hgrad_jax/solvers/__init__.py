"""Linear solvers for implicit derivatives."""

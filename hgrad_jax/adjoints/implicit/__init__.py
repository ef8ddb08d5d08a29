"""Implicit differentiation: conditions that hold at rest, and their hypergradients."""

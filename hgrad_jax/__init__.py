"""Hypergradients through training in JAX."""

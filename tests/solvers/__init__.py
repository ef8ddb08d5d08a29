"""Tests of `hgrad_jax/solvers/`."""

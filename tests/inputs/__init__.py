"""Tests of `hgrad_jax/inputs/`."""

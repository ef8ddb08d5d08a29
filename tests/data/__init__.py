"""Tests of `hgrad_jax/data/`."""

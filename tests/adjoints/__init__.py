"""Tests of `hgrad_jax/adjoints/`."""

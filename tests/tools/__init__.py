"""Tests of `hgrad_jax/tools/`."""

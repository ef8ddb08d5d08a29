"""Tests of `hgrad_jax/online/`."""

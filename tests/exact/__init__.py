"""Tests of `hgrad_jax/exact/`."""

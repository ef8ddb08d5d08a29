"""Tests of `hgrad_jax/training/`."""

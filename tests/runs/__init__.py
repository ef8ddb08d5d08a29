"""Tests of `hgrad_jax/runs/`."""

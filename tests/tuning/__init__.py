"""Tests of `hgrad_jax/tuning/`."""

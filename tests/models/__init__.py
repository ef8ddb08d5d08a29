"""Tests of `hgrad_jax/models/`."""

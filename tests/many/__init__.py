"""Tests of `hgrad_jax/many/`."""

"""Tests of `hgrad_jax/rules/`."""

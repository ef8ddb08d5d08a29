"""Tests of `hgrad_jax/diagnostics/`."""

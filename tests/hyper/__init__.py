"""Tests of `hgrad_jax/hyper/`."""

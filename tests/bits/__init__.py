"""Tests of `hgrad_jax/bits/`."""

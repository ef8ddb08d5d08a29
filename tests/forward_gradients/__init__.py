"""Tests of `hgrad_jax/forward_gradients/`."""

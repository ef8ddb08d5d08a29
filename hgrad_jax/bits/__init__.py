"""Arithmetic to the last bit: fixed point, the bit store, decays that lose nothing."""

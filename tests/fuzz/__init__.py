"""Odd arguments to every public callable."""

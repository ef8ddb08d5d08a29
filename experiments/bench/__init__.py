"""Measures what exact hypergradients cost, beside the least that they could cost."""

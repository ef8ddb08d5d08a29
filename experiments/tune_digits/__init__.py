"""Tunes hundreds of hyperparameters of a digits classifier by exact hypergradients."""

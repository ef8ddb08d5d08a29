"""Finds examples with wrong labels by hypergradients: data hyper-cleaning."""

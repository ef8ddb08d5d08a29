"""The outer loop: hyperparameters tuned by their hypergradients."""

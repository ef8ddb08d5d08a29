"""What DrMAD's hypergradients are worth, and what exact ones add."""

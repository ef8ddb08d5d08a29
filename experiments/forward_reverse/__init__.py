"""Forward against reverse: the same hypergradients in four modes, and what each of them costs."""

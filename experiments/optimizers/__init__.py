"""How update rules train a deep network, and how far batch normalization gets it."""

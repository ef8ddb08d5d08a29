"""Learning rates and momenta of a small net without biases, all settings in one call."""

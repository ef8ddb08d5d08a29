"""Training as users run it: epochs, metrics, stopping, checkpoints."""

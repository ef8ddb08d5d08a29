"""What to believe, what it would cost, and what a training path looks like: one tool a file."""

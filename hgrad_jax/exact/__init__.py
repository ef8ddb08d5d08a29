"""Training in integers that can be run backwards bit for bit."""

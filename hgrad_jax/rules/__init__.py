"""Update rules as pure transitions."""

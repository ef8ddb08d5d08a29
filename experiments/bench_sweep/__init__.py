"""What a sweep costs, beside the same runs one after the other."""

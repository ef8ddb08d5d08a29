"""Random configurations restored bit for bit, and faults planted in them."""

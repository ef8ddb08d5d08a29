"""What a run is: its trajectory, its inputs, what differentiates it, its first step."""

"""How a trajectory is differentiated: one method a file."""

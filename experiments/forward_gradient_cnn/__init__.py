"""What it takes to train a convolutional network without backpropagation."""

"""What a training step by forward gradients takes, beside one by backpropagation."""

"""Forward gradients against backpropagation on the Palmer penguins, over many seeds."""

"""What is kept of the forward pass."""

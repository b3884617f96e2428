"""What is kept of a step, and what puts the losses onto it."""

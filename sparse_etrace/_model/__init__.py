"""A model, read once."""

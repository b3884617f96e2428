"""Gradients of a stream, and the loop that trains."""

"""What is connected."""

"""What a rule is on a model, and what it costs."""

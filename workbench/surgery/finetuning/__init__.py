"""Training a model's own weights."""

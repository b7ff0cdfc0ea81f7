"""The study greater_than."""

"""The study surgery."""

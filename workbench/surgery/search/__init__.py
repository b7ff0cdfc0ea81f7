"""Which budget each part gets."""

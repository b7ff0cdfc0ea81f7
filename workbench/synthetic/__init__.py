"""Languages whose truth is known."""

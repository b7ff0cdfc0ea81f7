"""One file for each operation on weights."""

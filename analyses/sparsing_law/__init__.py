"""The study sparsing_law."""

"""The study codebook_language."""

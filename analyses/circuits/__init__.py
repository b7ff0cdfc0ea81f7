"""The study circuits."""

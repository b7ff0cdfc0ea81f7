"""The study continual."""

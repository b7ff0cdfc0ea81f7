"""The study train_defaults."""

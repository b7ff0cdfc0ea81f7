"""One language model: its weights, its hook points, and how it writes."""

"""Graphs of features: which features a prediction is made of, and what leads to what."""

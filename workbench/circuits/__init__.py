"""Circuits: which heads and which features do the work."""

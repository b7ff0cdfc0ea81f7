"""Interventions on features, and models that run through dictionaries."""

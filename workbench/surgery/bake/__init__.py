"""Edits as weights."""

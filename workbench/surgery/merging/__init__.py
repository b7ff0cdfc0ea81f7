"""Merges of several checkpoints by the recipes of mergekit."""

"""The studies: published results, run again on this model."""

"""Follow how the model completes years, with transcoders (Dunefsky et al., arXiv 2406.11944, section 5)."""

from analyses.greater_than.study import STUDY as STUDY

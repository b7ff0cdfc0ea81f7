"""Measure how the share of active neurons changes with training data, shape and size (Luo et al., arXiv 2411.02335)."""

from analyses.sparsing_law.study import STUDY as STUDY

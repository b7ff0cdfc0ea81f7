"""Swap one concept for another by the Jacobian lens's vectors (Gurnee et al. 2026), beside random directions."""

from analyses.concept_swap.study import STUDY as STUDY

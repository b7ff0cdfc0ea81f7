"""Measure what every operation of surgery costs, beside the claims of eight papers."""

from analyses.surgery.study import STUDY as STUDY

"""Measure codebooks on a language whose truth is known, TokFSM (Tamkin et al., arXiv 2310.17230, section 3)."""

from analyses.tokfsm.study import STUDY as STUDY

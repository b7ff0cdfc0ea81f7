"""Learn kinds of text one after another with a key-value bottleneck (Träuble et al., arXiv 2207.11240)."""

from analyses.continual.study import STUDY as STUDY

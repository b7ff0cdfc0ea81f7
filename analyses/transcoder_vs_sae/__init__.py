"""Compare transcoders with SAEs at equal sparsity (Dunefsky et al., arXiv 2406.11944)."""

from analyses.transcoder_vs_sae.study import STUDY as STUDY

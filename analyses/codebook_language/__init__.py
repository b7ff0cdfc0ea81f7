"""Run the default model through codebooks and steer it by their codes (Tamkin et al., arXiv 2310.17230)."""

from analyses.codebook_language.study import STUDY as STUDY

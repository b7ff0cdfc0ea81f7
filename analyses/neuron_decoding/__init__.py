"""Read neurons through the LM head, clamp them, and ask for a favourite animal (Davies, arXiv 2501.02688)."""

from analyses.neuron_decoding.study import STUDY as STUDY

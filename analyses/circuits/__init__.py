"""Find the heads of a circuit by a discrete autoencoder, beside patching (O'Neill and Bui, arXiv 2405.12522)."""

from analyses.circuits.study import STUDY as STUDY

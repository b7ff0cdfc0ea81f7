"""The study transcoder_vs_sae."""

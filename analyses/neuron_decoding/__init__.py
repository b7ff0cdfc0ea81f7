"""The study neuron_decoding."""

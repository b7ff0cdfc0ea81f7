"""MLP neurons through the LM head."""

from workbench.neurons.unembedding import NeuronTable as NeuronTable
from workbench.neurons.unembedding import compare_decodings as compare_decodings
from workbench.neurons.unembedding import decode_neurons as decode_neurons
from workbench.neurons.unembedding import nearest_neurons as nearest_neurons
from workbench.neurons.unembedding import neurons_writing as neurons_writing
from workbench.neurons.unembedding import token_scores as token_scores

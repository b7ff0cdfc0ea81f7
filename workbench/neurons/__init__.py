"""MLP neurons through the LM head."""

from workbench.neurons.agreement import compare_decodings as compare_decodings
from workbench.neurons.directions import nearest_neurons as nearest_neurons
from workbench.neurons.directions import neurons_writing as neurons_writing
from workbench.neurons.directions import token_scores as token_scores
from workbench.neurons.table import NeuronError as NeuronError
from workbench.neurons.table import NeuronTable as NeuronTable
from workbench.neurons.unembedding import decode_neurons as decode_neurons

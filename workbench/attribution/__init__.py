"""Graphs of features: which features a prediction is made of, and what leads to what."""

from workbench.attribution.attribute import attribute as attribute
from workbench.attribution.deembedding import deembed as deembed
from workbench.attribution.frozen import AttributionError as AttributionError
from workbench.attribution.graph import Graph as Graph
from workbench.attribution.graph_json import load_graph as load_graph
from workbench.attribution.graph_json import save_graph as save_graph
from workbench.attribution.verification import verify_graph as verify_graph

"""Attribution graphs: the features behind a prediction, and how much each contributes to others and to the target."""

from workbench.attribution.attribute import attribute as attribute
from workbench.attribution.deembedding import DeEmbedding as DeEmbedding
from workbench.attribution.deembedding import HeadDrive as HeadDrive
from workbench.attribution.deembedding import TokenScores as TokenScores
from workbench.attribution.deembedding import deembed as deembed
from workbench.attribution.deembedding import head_drives as head_drives
from workbench.attribution.deembedding import token_drives as token_drives
from workbench.attribution.errors import AttributionError as AttributionError
from workbench.attribution.graph import KINDS as KINDS
from workbench.attribution.graph import Edge as Edge
from workbench.attribution.graph import Graph as Graph
from workbench.attribution.graph import Node as Node
from workbench.attribution.graph_json import from_json as from_json
from workbench.attribution.graph_json import load_graph as load_graph
from workbench.attribution.graph_json import save_graph as save_graph
from workbench.attribution.graph_json import to_json as to_json
from workbench.attribution.neuronpedia import to_neuronpedia as to_neuronpedia
from workbench.attribution.target import Target as Target
from workbench.attribution.verification import REGIMES as REGIMES
from workbench.attribution.verification import Verification as Verification
from workbench.attribution.verification import verify_graph as verify_graph

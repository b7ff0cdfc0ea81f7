"""Workbench: see, measure, steer and change the parts of a language model, on one machine.

The names of the contract stand here; all else is reached through its room, such as `wb.surgery.prune`.
"""

from workbench import attribution as attribution
from workbench import circuits as circuits
from workbench import core as core
from workbench import corpus as corpus
from workbench import dictionaries as dictionaries
from workbench import evaluation as evaluation
from workbench import figures as figures
from workbench import harvest as harvest
from workbench import index as index
from workbench import interventions as interventions
from workbench import measures as measures
from workbench import model as model
from workbench import neurons as neurons
from workbench import sparsity as sparsity
from workbench import surgery as surgery
from workbench import synthetic as synthetic
from workbench import training as training
from workbench.attribution.attribute import attribute as attribute
from workbench.circuits.discrete import find_heads_discrete as find_heads_discrete
from workbench.core.errors import WorkbenchError as WorkbenchError
from workbench.corpus import Corpus as Corpus
from workbench.dictionaries.codebook import Codebook as Codebook
from workbench.dictionaries.features import Feature as Feature
from workbench.dictionaries.loading import load_dictionary as load_dictionary
from workbench.dictionaries.topk import TopKSAE as TopKSAE
from workbench.index import build_index as build_index
from workbench.index import open_index as open_index
from workbench.interventions.kinds import Ablate as Ablate
from workbench.interventions.kinds import Clamp as Clamp
from workbench.interventions.kinds import Force as Force
from workbench.interventions.kinds import Scale as Scale
from workbench.interventions.kinds import Steer as Steer
from workbench.interventions.opening import load_model as load_model
from workbench.measures.comparison import compare as compare
from workbench.measures.fidelity import measure_fidelity as measure_fidelity
from workbench.neurons.unembedding import decode_neurons as decode_neurons
from workbench.sparsity.measure import measure_sparsity as measure_sparsity
from workbench.surgery.bake.bake import bake as bake
from workbench.training import train as train

__all__ = [
    "Ablate",
    "Clamp",
    "Codebook",
    "Corpus",
    "Feature",
    "Force",
    "Scale",
    "Steer",
    "TopKSAE",
    "WorkbenchError",
    "attribute",
    "attribution",
    "bake",
    "build_index",
    "circuits",
    "compare",
    "core",
    "corpus",
    "decode_neurons",
    "dictionaries",
    "evaluation",
    "figures",
    "find_heads_discrete",
    "harvest",
    "index",
    "interventions",
    "load_dictionary",
    "load_model",
    "measure_fidelity",
    "measure_sparsity",
    "measures",
    "model",
    "neurons",
    "open_index",
    "sparsity",
    "surgery",
    "synthetic",
    "train",
    "training",
]


def __dir__() -> list[str]:
    return __all__

from . import attribution as attribution
from . import circuits as circuits
from . import core as core
from . import corpus as corpus
from . import dictionaries as dictionaries
from . import differences as differences
from . import directions as directions
from . import evaluation as evaluation
from . import figures as figures
from . import findings as findings
from . import harvest as harvest
from . import index as index
from . import interventions as interventions
from . import labels as labels
from . import lens as lens
from . import measures as measures
from . import model as model
from . import neurons as neurons
from . import sparsity as sparsity
from . import steering as steering
from . import surgery as surgery
from . import synthetic as synthetic
from . import training as training
from .attribution.attribute import attribute as attribute
from .circuits.discrete import find_heads_discrete as find_heads_discrete
from .core.errors import WorkbenchError as WorkbenchError
from .core.version import __version__ as __version__
from .corpus import Corpus as Corpus
from .dictionaries.codebook import Codebook as Codebook
from .dictionaries.features import Feature as Feature
from .dictionaries.loading import load_dictionary as load_dictionary
from .dictionaries.topk import TopKSAE as TopKSAE
from .directions.finding import find_direction as find_direction
from .directions.probing import probe as probe
from .findings.scan import scan as scan
from .index import build_index as build_index
from .index import open_index as open_index
from .interventions.kinds import Ablate as Ablate
from .interventions.kinds import Clamp as Clamp
from .interventions.kinds import Force as Force
from .interventions.kinds import Scale as Scale
from .interventions.kinds import Steer as Steer
from .interventions.opening import load_model as load_model
from .lens.reading import read_lens as read_lens
from .measures.comparison import compare as compare
from .measures.fidelity import measure_fidelity as measure_fidelity
from .neurons.unembedding import decode_neurons as decode_neurons
from .sparsity.measure import measure_sparsity as measure_sparsity
from .surgery.bake.bake import bake as bake
from .training import train as train

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
    "differences",
    "directions",
    "evaluation",
    "figures",
    "find_direction",
    "find_heads_discrete",
    "findings",
    "harvest",
    "index",
    "interventions",
    "labels",
    "lens",
    "load_dictionary",
    "load_model",
    "measure_fidelity",
    "measure_sparsity",
    "measures",
    "model",
    "neurons",
    "open_index",
    "probe",
    "read_lens",
    "scan",
    "sparsity",
    "steering",
    "surgery",
    "synthetic",
    "train",
    "training",
]

def __dir__() -> list[str]:
    return __all__

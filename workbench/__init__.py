"""Workbench: see, measure, steer and change the parts of a language model, on one machine."""

from workbench.decode import NeuronTable as NeuronTable
from workbench.decode import compare_decodings as compare_decodings
from workbench.decode import decode_neurons as decode_neurons
from workbench.decode import nearest_neurons as nearest_neurons
from workbench.decode import neurons_writing as neurons_writing
from workbench.decode import token_scores as token_scores
from workbench.edits import EditError as EditError
from workbench.features import Feature as Feature
from workbench.features import FeatureError as FeatureError
from workbench.generation import LanguageModel as LanguageModel
from workbench.generation import load_model as load_model
from workbench.hookpoints import HookPointError as HookPointError
from workbench.interventions import Ablate as Ablate
from workbench.interventions import Clamp as Clamp
from workbench.interventions import Scale as Scale
from workbench.interventions import Steer as Steer
from workbench.interventions import load_interventions as load_interventions
from workbench.interventions import save_interventions as save_interventions
from workbench.measures.comparison import Comparison as Comparison
from workbench.measures.comparison import compare as compare
from workbench.measures.comparison import compare_steps as compare_steps
from workbench.measures.dose_response import dose_response as dose_response
from workbench.sampling import PromptError as PromptError
from workbench.sampling import Sampling as Sampling
from workbench.weights import ModelError as ModelError

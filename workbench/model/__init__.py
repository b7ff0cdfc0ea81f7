"""One language model: its weights, its hook points, and how it writes."""

from workbench.model.edits import EditError as EditError
from workbench.model.hookpoints import HookPointError as HookPointError
from workbench.model.language_model import LanguageModel as LanguageModel
from workbench.model.sampling import PromptError as PromptError
from workbench.model.sampling import Sampling as Sampling
from workbench.model.weights import ModelError as ModelError

"""Steering: which direction, where and how strong, by what it does and what it costs."""

from workbench.steering.errors import SteeringError as SteeringError
from workbench.steering.lm_eval import lm_eval_model as lm_eval_model
from workbench.steering.measures import Divergence as Divergence
from workbench.steering.measures import PatternShare as PatternShare
from workbench.steering.measures import Perplexity as Perplexity
from workbench.steering.measures import Projection as Projection
from workbench.steering.measures import Repetition as Repetition
from workbench.steering.measures import WordProbability as WordProbability
from workbench.steering.result import DirectionSearch as DirectionSearch
from workbench.steering.result import DirectionTrial as DirectionTrial
from workbench.steering.search import search_direction as search_direction
from workbench.steering.sources import feature_direction as feature_direction
from workbench.steering.sources import optimise_direction as optimise_direction
from workbench.steering.sources import token_direction as token_direction

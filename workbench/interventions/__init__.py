"""Interventions on features and parts of a model, and models that run through dictionaries."""

from workbench.interventions.choices import Choice as Choice
from workbench.interventions.choices import choices as choices
from workbench.interventions.features import dictionary_of as dictionary_of
from workbench.interventions.kinds import Ablate as Ablate
from workbench.interventions.kinds import AblateDirection as AblateDirection
from workbench.interventions.kinds import Clamp as Clamp
from workbench.interventions.kinds import Force as Force
from workbench.interventions.kinds import Limit as Limit
from workbench.interventions.kinds import RemoveHead as RemoveHead
from workbench.interventions.kinds import RemoveLayer as RemoveLayer
from workbench.interventions.kinds import RemoveSublayer as RemoveSublayer
from workbench.interventions.kinds import Scale as Scale
from workbench.interventions.kinds import Steer as Steer
from workbench.interventions.kinds import SwapDirections as SwapDirections
from workbench.interventions.opening import bundled_models as bundled_models
from workbench.interventions.opening import load_model as load_model
from workbench.interventions.opening import save_model as save_model
from workbench.interventions.protocol import INTERVENTIONS as INTERVENTIONS
from workbench.interventions.protocol import FeatureIntervention as FeatureIntervention
from workbench.interventions.protocol import InterventionKind as InterventionKind
from workbench.interventions.saved import load_interventions as load_interventions
from workbench.interventions.saved import save_interventions as save_interventions
from workbench.interventions.when import When as When

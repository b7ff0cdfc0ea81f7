"""Interventions on features, and models that run through dictionaries."""

from workbench.interventions.kinds import Ablate as Ablate
from workbench.interventions.kinds import Clamp as Clamp
from workbench.interventions.kinds import Force as Force
from workbench.interventions.kinds import Scale as Scale
from workbench.interventions.kinds import Steer as Steer
from workbench.interventions.opening import bundled_models as bundled_models
from workbench.interventions.opening import load_model as load_model
from workbench.interventions.opening import save_model as save_model
from workbench.interventions.saved import load_interventions as load_interventions
from workbench.interventions.saved import save_interventions as save_interventions
from workbench.interventions.weight_edits import AblateDirection as AblateDirection
from workbench.interventions.weight_edits import RemoveHead as RemoveHead
from workbench.interventions.weight_edits import RemoveLayer as RemoveLayer
from workbench.interventions.weight_edits import RemoveSublayer as RemoveSublayer

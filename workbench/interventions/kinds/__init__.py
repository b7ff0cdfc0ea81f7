"""The interventions, each in a file of its own; importing the folder registers every one of them."""

import importlib as _importlib
import pkgutil as _pkgutil

from workbench.interventions.kinds.ablate import Ablate as Ablate
from workbench.interventions.kinds.ablate_direction import AblateDirection as AblateDirection
from workbench.interventions.kinds.clamp import Clamp as Clamp
from workbench.interventions.kinds.force import Force as Force
from workbench.interventions.kinds.limit import Limit as Limit
from workbench.interventions.kinds.remove_head import RemoveHead as RemoveHead
from workbench.interventions.kinds.remove_layer import RemoveLayer as RemoveLayer
from workbench.interventions.kinds.remove_sublayer import RemoveSublayer as RemoveSublayer
from workbench.interventions.kinds.scale import Scale as Scale
from workbench.interventions.kinds.steer import Steer as Steer
from workbench.interventions.kinds.swap_directions import SwapDirections as SwapDirections

for _module in _pkgutil.iter_modules(__path__):
    _importlib.import_module(f"{__name__}.{_module.name}")

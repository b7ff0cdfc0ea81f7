"""Plotly figures, made from results."""

from workbench.figures.attribution import attribution_graph as attribution_graph
from workbench.figures.circuits import head_maps as head_maps
from workbench.figures.circuits import roc_curves as roc_curves
from workbench.figures.common import AGAINST as AGAINST
from workbench.figures.common import FAINT as FAINT
from workbench.figures.common import FONT as FONT
from workbench.figures.common import FOR as FOR
from workbench.figures.common import GRID as GRID
from workbench.figures.common import INK as INK
from workbench.figures.common import activation_histogram as activation_histogram
from workbench.figures.common import axis_title as axis_title
from workbench.figures.common import dose_curve as dose_curve
from workbench.figures.common import dress as dress
from workbench.figures.common import fidelity_comparison as fidelity_comparison
from workbench.figures.common import next_state_map as next_state_map
from workbench.figures.common import token_bars as token_bars
from workbench.figures.common import token_changes as token_changes
from workbench.figures.common import training_curves as training_curves
from workbench.figures.sparsity import sparsity_by_layer as sparsity_by_layer
from workbench.figures.sparsity import sparsity_price as sparsity_price

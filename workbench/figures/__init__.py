"""Plotly figures of results, so that a report, a notebook and a page show the same picture.

The list is explicit, so that editors complete it and type checkers see it. The figures of a new page are one new file
here; without an entry in the list they are reached as `from workbench.figures.NAME import figure`.
"""

from workbench.figures.attribution import attribution_graph as attribution_graph
from workbench.figures.circuits import head_maps as head_maps
from workbench.figures.circuits import roc_curves as roc_curves
from workbench.figures.common import AGAINST as AGAINST
from workbench.figures.common import FAINT as FAINT
from workbench.figures.common import FONT as FONT
from workbench.figures.common import FOR as FOR
from workbench.figures.common import GRID as GRID
from workbench.figures.common import INK as INK
from workbench.figures.common import Figure as Figure
from workbench.figures.common import axis_title as axis_title
from workbench.figures.common import bar_figure as bar_figure
from workbench.figures.common import dress as dress
from workbench.figures.common import name_rows as name_rows
from workbench.figures.common import short_label as short_label
from workbench.figures.fidelity import fidelity_comparison as fidelity_comparison
from workbench.figures.predictions import doubt_bars as doubt_bars
from workbench.figures.predictions import exit_curve as exit_curve
from workbench.figures.predictions import lens_map as lens_map
from workbench.figures.predictions import logit_bars as logit_bars
from workbench.figures.reading import attention_map as attention_map
from workbench.figures.sparsity import sparsity_by_layer as sparsity_by_layer
from workbench.figures.sparsity import sparsity_price as sparsity_price
from workbench.figures.states import next_state_map as next_state_map
from workbench.figures.tokens import activation_histogram as activation_histogram
from workbench.figures.tokens import dose_curve as dose_curve
from workbench.figures.tokens import token_bars as token_bars
from workbench.figures.tokens import token_changes as token_changes
from workbench.figures.training import training_curves as training_curves

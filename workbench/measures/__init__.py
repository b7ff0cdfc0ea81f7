"""What interventions and dictionaries do to a model: comparisons, dose curves, fidelity."""

from workbench.measures.comparison import Comparison as Comparison
from workbench.measures.comparison import compare as compare
from workbench.measures.comparison import compare_steps as compare_steps
from workbench.measures.dose_response import dose_response as dose_response
from workbench.measures.fidelity import Fidelity as Fidelity
from workbench.measures.fidelity import measure_fidelities as measure_fidelities
from workbench.measures.fidelity import measure_fidelity as measure_fidelity

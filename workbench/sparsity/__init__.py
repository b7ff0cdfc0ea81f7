"""How many neurons a model can do without, and at what cost."""

from workbench.sparsity.groups import group_neurons as group_neurons
from workbench.sparsity.groups import measure_routing as measure_routing
from workbench.sparsity.masking import SparsityError as SparsityError
from workbench.sparsity.masking import with_sparsity as with_sparsity
from workbench.sparsity.measure import measure_at_thresholds as measure_at_thresholds
from workbench.sparsity.measure import measure_sparsities as measure_sparsities
from workbench.sparsity.measure import measure_sparsity as measure_sparsity
from workbench.sparsity.neurons import neuron_activity as neuron_activity
from workbench.sparsity.outcome import SparsityOutcome as SparsityOutcome
from workbench.sparsity.output import save_sparsities as save_sparsities
from workbench.sparsity.result import Sparsity as Sparsity
from workbench.sparsity.tokens import token_activity as token_activity
from workbench.sparsity.verification import verify_sparsity as verify_sparsity

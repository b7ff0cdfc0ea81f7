"""Circuits: which heads and which features do the work."""

from workbench.circuits.discrete import DiscreteCircuit as DiscreteCircuit
from workbench.circuits.discrete import find_circuit_discrete as find_circuit_discrete
from workbench.circuits.discrete import find_heads_discrete as find_heads_discrete
from workbench.circuits.patching import patch_components as patch_components
from workbench.circuits.patching_gradients import attribution_patching as attribution_patching
from workbench.circuits.task_evaluation import evaluate_task as evaluate_task
from workbench.circuits.tasks import Task as Task
from workbench.circuits.tasks import TaskError as TaskError
from workbench.circuits.tasks import load_task as load_task
from workbench.circuits.tasks import save_task as save_task
from workbench.circuits.tasks_generated import docstring as docstring
from workbench.circuits.tasks_generated import greater_than as greater_than
from workbench.circuits.tasks_generated import ioi as ioi

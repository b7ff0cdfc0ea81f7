"""Training: a dictionary learns from a model's activations, in steps that can be stopped, continued and repeated."""

from workbench.training.checkpoints import TrainingError as TrainingError
from workbench.training.checkpoints import read_history as read_history
from workbench.training.steps import ramp as ramp
from workbench.training.trainer import train as train
from workbench.training.tuning import fine_tune as fine_tune

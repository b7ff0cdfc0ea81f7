"""How well a model predicts, how far two models' predictions are apart, and how far that depends on the texts."""

from workbench.evaluation.bootstrap import Estimate as Estimate
from workbench.evaluation.bootstrap import TextSums as TextSums
from workbench.evaluation.bootstrap import bootstrap as bootstrap
from workbench.evaluation.errors import EvaluationError as EvaluationError
from workbench.evaluation.losses import cross_entropy as cross_entropy
from workbench.evaluation.losses import kl_divergence as kl_divergence
from workbench.evaluation.losses import perplexity as perplexity
from workbench.evaluation.losses import predictions as predictions
from workbench.evaluation.losses import token_losses as token_losses
from workbench.evaluation.repetition import repetition as repetition
from workbench.evaluation.runs import logits_under as logits_under
from workbench.evaluation.runs import windows_at_once as windows_at_once

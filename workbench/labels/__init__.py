"""Labels that a language model writes, and scores of labels."""

from workbench.labels.asking import Notebook as Notebook
from workbench.labels.asking import Server as Server
from workbench.labels.asking import Writer as Writer
from workbench.labels.errors import LabelError as LabelError
from workbench.labels.explaining import explain_with as explain_with
from workbench.labels.output import output_score as output_score
from workbench.labels.scores import AskedJudge as AskedJudge
from workbench.labels.scores import LabelScores as LabelScores
from workbench.labels.scores import RuleJudge as RuleJudge
from workbench.labels.scores import Score as Score
from workbench.labels.scores import score_label as score_label

"""What each layer predicts: lenses on the residual stream and on what is added to it."""

from workbench.lens.attention import Attention as Attention
from workbench.lens.attention import HeadScores as HeadScores
from workbench.lens.attention import read_attention as read_attention
from workbench.lens.attention import score_heads as score_heads
from workbench.lens.doubt import Doubt as Doubt
from workbench.lens.doubt import EarlyExit as EarlyExit
from workbench.lens.doubt import measure_early_exit as measure_early_exit
from workbench.lens.doubt import read_doubt as read_doubt
from workbench.lens.errors import LensError as LensError
from workbench.lens.files import load_lens as load_lens
from workbench.lens.fitting import fit_tuned_lens as fit_tuned_lens
from workbench.lens.grid import LensGrid as LensGrid
from workbench.lens.jacobian import JacobianLens as JacobianLens
from workbench.lens.jacobian_fit import fit_jacobian_lens as fit_jacobian_lens
from workbench.lens.logits import LogitAttribution as LogitAttribution
from workbench.lens.logits import Share as Share
from workbench.lens.logits import attribute_logit as attribute_logit
from workbench.lens.measuring import LensFidelity as LensFidelity
from workbench.lens.measuring import measure_lens as measure_lens
from workbench.lens.reading import read_lens as read_lens
from workbench.lens.transports import Lens as Lens
from workbench.lens.transports import LensRecord as LensRecord
from workbench.lens.transports import LogitLens as LogitLens
from workbench.lens.tuned import TunedLens as TunedLens
from workbench.lens.words import TextWords as TextWords
from workbench.lens.words import read_words as read_words

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
from workbench.lens.grid import LensGrid as LensGrid
from workbench.lens.head_search import HeadHit as HeadHit
from workbench.lens.head_search import find_heads as find_heads
from workbench.lens.heads import AttendedPair as AttendedPair
from workbench.lens.heads import HeadCard as HeadCard
from workbench.lens.heads import WrittenTokens as WrittenTokens
from workbench.lens.heads import head_card as head_card
from workbench.lens.logit_sum import Share as Share
from workbench.lens.logits import LogitAttribution as LogitAttribution
from workbench.lens.logits import attribute_logit as attribute_logit
from workbench.lens.reading import read_lens as read_lens
from workbench.lens.transports import Lens as Lens
from workbench.lens.transports import LogitLens as LogitLens
from workbench.lens.words import TextWords as TextWords
from workbench.lens.words import read_words as read_words

"""The feature index: for every feature of a dictionary its examples, statistics and relations, over a corpus.

`build_index` makes one in a single pass with bounded memory, `open_index` opens it; it needs neither model nor corpus
to be browsed and searched.
"""

from workbench.index.build import build_index as build_index
from workbench.index.build import build_indexes as build_indexes
from workbench.index.card import Example as Example
from workbench.index.card import FeatureCard as FeatureCard
from workbench.index.card import FeatureHit as FeatureHit
from workbench.index.feature_index import FeatureIndex as FeatureIndex
from workbench.index.feature_index import open_index as open_index
from workbench.index.layout import FeatureIndexError as FeatureIndexError

"""The feature index: examples, statistics and relations of every feature of a dictionary, over a corpus.

`build_index` builds one in a single pass with bounded memory, `open_index` opens it; browsing and searching it needs
neither model nor corpus.
"""

from workbench.index.build import build_index as build_index
from workbench.index.build import build_indexes as build_indexes
from workbench.index.card import Example as Example
from workbench.index.card import FeatureCard as FeatureCard
from workbench.index.card import FeatureHit as FeatureHit
from workbench.index.card import Histogram as Histogram
from workbench.index.card import Neighbour as Neighbour
from workbench.index.card import Partner as Partner
from workbench.index.card import QuantileExample as QuantileExample
from workbench.index.card import RegexScore as RegexScore
from workbench.index.card import TokenFeatures as TokenFeatures
from workbench.index.card import TokenScore as TokenScore
from workbench.index.export_index import build_from_export as build_from_export
from workbench.index.export_reading import open_export as open_export
from workbench.index.export_writing import add_labels as add_labels
from workbench.index.export_writing import export_features as export_features
from workbench.index.exported import ExportedExample as ExportedExample
from workbench.index.exported import ExportedFeature as ExportedFeature
from workbench.index.exported import ExportedLabel as ExportedLabel
from workbench.index.exported import FeatureExport as FeatureExport
from workbench.index.families import Families as Families
from workbench.index.families import group_features as group_features
from workbench.index.feature_index import FeatureIndex as FeatureIndex
from workbench.index.feature_index import open_index as open_index
from workbench.index.feature_label import Explanations as Explanations
from workbench.index.feature_label import FeatureLabel as FeatureLabel
from workbench.index.label_files import Remark as Remark
from workbench.index.layout import FeatureIndexError as FeatureIndexError
from workbench.index.matching import Matches as Matches
from workbench.index.matching import match_features as match_features
from workbench.index.tokens import TokenTable as TokenTable
from workbench.index.tokens import text_ends as text_ends

"""What differs between two models: on texts, in the residual stream, in weights and in features."""

from workbench.differences.compare import compare_models as compare_models
from workbench.differences.errors import DifferenceError as DifferenceError
from workbench.differences.results import DecodingDifference as DecodingDifference
from workbench.differences.results import DictionaryDifference as DictionaryDifference
from workbench.differences.results import Difference as Difference
from workbench.differences.results import EditDifference as EditDifference
from workbench.differences.results import Graft as Graft
from workbench.differences.results import LatentDifference as LatentDifference
from workbench.differences.results import LayerDifference as LayerDifference
from workbench.differences.results import ModelDifferences as ModelDifferences
from workbench.differences.results import Passage as Passage
from workbench.differences.results import TensorDifference as TensorDifference
from workbench.differences.results import TextDifferences as TextDifferences
from workbench.differences.results import UnitDifference as UnitDifference
from workbench.differences.results import WeightDifferences as WeightDifferences

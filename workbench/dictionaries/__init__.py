"""The kinds of dictionary, each in a file of its own; importing the folder registers every one of them."""

import importlib as _importlib
import pkgutil as _pkgutil

from workbench.dictionaries.batchtopk import BatchTopKSAE as BatchTopKSAE
from workbench.dictionaries.batchtopk import MatryoshkaBatchTopKSAE as MatryoshkaBatchTopKSAE
from workbench.dictionaries.codebook import Codebook as Codebook
from workbench.dictionaries.codes import Codes as Codes
from workbench.dictionaries.cross_layer import CrossLayerTranscoder as CrossLayerTranscoder
from workbench.dictionaries.crosscoder import Crosscoder as Crosscoder
from workbench.dictionaries.features import Feature as Feature
from workbench.dictionaries.features import FeatureError as FeatureError
from workbench.dictionaries.folder import DictionaryError as DictionaryError
from workbench.dictionaries.gated import GatedSAE as GatedSAE
from workbench.dictionaries.groupmax import GroupMaxSAE as GroupMaxSAE
from workbench.dictionaries.groupmax import GroupMaxSkipTranscoder as GroupMaxSkipTranscoder
from workbench.dictionaries.groupmax import GroupMaxTranscoder as GroupMaxTranscoder
from workbench.dictionaries.jumprelu import JumpReLUSAE as JumpReLUSAE
from workbench.dictionaries.jumprelu import JumpReLUSkipTranscoder as JumpReLUSkipTranscoder
from workbench.dictionaries.jumprelu import JumpReLUTranscoder as JumpReLUTranscoder
from workbench.dictionaries.key_value import KeyValueBottleneck as KeyValueBottleneck
from workbench.dictionaries.loading import load_dictionary as load_dictionary
from workbench.dictionaries.protocol import Dictionary as Dictionary
from workbench.dictionaries.relu import SkipTranscoder as SkipTranscoder
from workbench.dictionaries.relu import StandardSAE as StandardSAE
from workbench.dictionaries.relu import Transcoder as Transcoder
from workbench.dictionaries.sets import load_set as load_set
from workbench.dictionaries.topk import TopKSAE as TopKSAE
from workbench.dictionaries.topk import TopKSkipTranscoder as TopKSkipTranscoder
from workbench.dictionaries.topk import TopKTranscoder as TopKTranscoder
from workbench.dictionaries.trainable import Step as Step
from workbench.dictionaries.trainable import Trainable as Trainable

for _module in _pkgutil.iter_modules(__path__):
    _importlib.import_module(f"{__name__}.{_module.name}")

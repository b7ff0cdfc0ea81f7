"""Texts, and their way into a model: loading, splitting, cutting into batches of tokens."""

from workbench.corpus.batching import TokenBatch as TokenBatch
from workbench.corpus.batching import special_ids as special_ids
from workbench.corpus.corpus import Corpus as Corpus
from workbench.corpus.corpus import as_corpus as as_corpus
from workbench.corpus.reading import CorpusError as CorpusError
from workbench.corpus.reading import bundled as bundled

"""Building feature indexes: one pass of the model over a corpus, for one dictionary or several at once.

During the pass the codes of each dictionary are appended to files, with commits as in `harvest.store`: a build that was
killed continues at its last commit and gives equal files. Then each index is sorted, written under a temporary name and
renamed. Memory is bounded by the batch and by `spool.CHUNK`; until it is done, a build takes about 9 bytes of disk for
each active feature of each token, or 2 for each neuron.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from workbench.core.checks import Integer, Number, checked
from workbench.core.locks import alone
from workbench.core.progress import Progress, remembering
from workbench.corpus import Corpus
from workbench.dictionaries.folder import DictionaryError, check_finite
from workbench.dictionaries.neurons import Neurons
from workbench.dictionaries.origin import tell_origin
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import check_count
from workbench.harvest import Harvest
from workbench.index.feature_index import FeatureIndex
from workbench.index.index_build import IndexBuild
from workbench.index.layout import (
    FeatureIndexError,
)
from workbench.index.selection import LEAST_KEPT
from workbench.interventions.features import dictionary_of
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel

_READING = 0.9
"""The pass's share of the time, about."""


@checked(FeatureIndexError)
def build_index(
    model: LanguageModel, dictionary: Dictionary | str, corpus: Corpus, path: str | Path, **how: Any
) -> FeatureIndex:
    """Build the index of one dictionary in the folder `path`; settings and errors as in `build_indexes`."""
    return build_indexes(model, {path: dictionary}, corpus, **how)[0]


@checked(FeatureIndexError)
def build_indexes(
    model: LanguageModel,
    dictionaries: Mapping[str | Path, Dictionary | str],
    corpus: Corpus,
    *,
    tokens: Integer | None = None,
    context: Integer = 256,
    batch: Integer = 16,
    seed: Integer = 0,
    keep: Annotated[Integer, Ge(LEAST_KEPT)] | None = None,
    commit_every: Annotated[Number, Ge(0)] = 5.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[FeatureIndex]:
    """Build several indexes in one pass over a corpus, without interventions.

    A folder that holds an index of the same model, corpus, dictionary and settings is opened; one that holds another
    index is built anew, and its labels, notes and stars stay. A call that was stopped continues when it is repeated
    with the same settings.

    Args:
        model: the model.
        dictionaries: by folder, a dictionary, or a layer's neurons by name, such as "neurons.29.gate".
        corpus: a `Corpus`.
        tokens, context, batch, seed: as in `Harvest`.
        keep: entries kept per feature, from 60: the highest half and as many evenly spaced ones of the rest; besides,
            all entries in the windows around a card's examples. None keeps all; of neurons `NEURONS_KEPT`, a third of
            them the highest and a third the lowest.
        commit_every: seconds between commits.
        progress: called with the share done and a word on what is being done, with an estimate of the time left;
            None: a bar; False: nothing.
        cancel: called before each batch; once it returns True, building stops with a `FeatureIndexError`.

    Returns:
        The indexes in the order of `dictionaries`, with model and dictionary.

    Raises:
        FeatureIndexError: a dictionary without a hook point or of another width, a folder with labels for another
            dictionary or that another process writes, a setting out of range, or a build that was cancelled.
        CorpusError: no text, or a model without a tokenizer.
        HarvestError: a setting that `Harvest` refuses.
    """
    if not dictionaries:
        raise FeatureIndexError("There is no dictionary to build an index for.")
    named = {Path(path): _named(model, dictionary) for path, dictionary in dictionaries.items()}
    if len({path.resolve() for path in named}) < len(dictionaries):
        raise FeatureIndexError("Two of the dictionaries have the same folder; give each its own.")
    points = sorted({point for dictionary in named.values() for point in dictionary.read_points})
    harvest = Harvest(model, corpus, points, tokens, context, batch, seed)
    jobs = [IndexBuild(path, model, dictionary, harvest, keep) for path, dictionary in named.items()]
    stops = remembering(cancel)
    with ExitStack() as locks:
        there = {job: job.finished() for job in jobs}
        for job in sorted((job for job in jobs if there[job] is None), key=lambda job: str(job.path)):
            locks.enter_context(alone(job.path, FeatureIndexError))
            there[job] = job.finished()  # by whoever had the lock
        todo = [job for job in jobs if there[job] is None]
        _read(harvest, todo, commit_every, progress, stops)
        for number, job in enumerate(todo):
            done = _READING + (1 - _READING) * number / len(todo)

            def check(share: float, done: float = done, job: IndexBuild = job) -> None:
                _stop_if(stops)
                if progress:
                    progress(done + share * (1 - _READING) / len(todo), f"Sorting {job.path.name}")

            job.finish(check)
        made = {job: FeatureIndex(job.path, model, job.dictionary) for job in todo}
        return [index for job in jobs if (index := made.get(job, there[job])) is not None]


def _read(
    harvest: Harvest,
    jobs: list[IndexBuild],
    commit_every: float,
    progress: Progress | None,
    stops: Callable[[], bool],
) -> None:
    """Run the pass: every build gets the codes of every token."""
    if not jobs:
        return
    each = [job.committed() for job in jobs]
    rows = min(each)
    reading: Progress | None = (lambda share, words: progress(_READING * share, words)) if progress else None
    try:
        for job in jobs:
            job.open(rows)
        committed_at = time.monotonic()
        with uninterrupted():
            for part in harvest.run(rows, progress=reading, cancel=stops):
                for job in jobs:
                    job.append(part)
                rows += len(part)
                if rows >= 1 << 31:
                    raise FeatureIndexError("An index holds at most 2,147,483,647 tokens; give tokens.")
                if time.monotonic() - committed_at >= commit_every:
                    for job in jobs:
                        job.commit(rows)
                    committed_at = time.monotonic()
        for job in jobs:
            job.commit(rows)
    finally:
        for job in jobs:
            job.close()
    _stop_if(stops)


def _stop_if(stops: Callable[[], bool]) -> None:
    if stops():
        raise FeatureIndexError("Building was cancelled; the same call continues where it stopped.")


def _named(model: LanguageModel, dictionary: Dictionary | str) -> Dictionary:
    """The dictionary, checked against the model."""
    if isinstance(dictionary, str | Neurons):  # a layer of experts has no neurons, whatever its hook points are called
        return dictionary_of(model, f"{dictionary if isinstance(dictionary, str) else dictionary.name}:0")
    if not dictionary.reads:
        raise FeatureIndexError(f"{dictionary.name} has no hook point yet; set its .reads and .writes.")
    wanted = dictionary.d_in // dictionary.n_reads
    try:
        check_count(dictionary.name, "reads", dictionary.read_points, dictionary.n_reads)
    except DictionaryError as error:
        raise FeatureIndexError(str(error)) from error
    for point in dictionary.read_points:
        width = model.hook_points[point].width
        if width != wanted:
            raise FeatureIndexError(
                f"{dictionary.name} reads activations of width {wanted:,}, "
                f"but {point} of {model.name} is {width:,} wide."
            )
    try:
        check_finite(dictionary.tensors())
    except DictionaryError as error:
        raise FeatureIndexError(f"{dictionary.name} can't be indexed: {error}.") from error
    tell_origin(dictionary, model)
    return dictionary

"""Building feature indexes: one pass of the model over a corpus, for one dictionary or several at once.

During the pass the codes of each dictionary are only appended to files, with commits as in `harvest.store`: a build
that is killed goes on where its last commit was, and gives equal files. Then each index is sorted and written under a
temporary name and renamed. Memory is bounded by the batch and by `spool.CHUNK`; a build takes about 9 bytes of disk
for each active feature of each token, or 2 for each neuron, until it is done.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.core.files import replacing
from workbench.core.progress import Progress
from workbench.core.provenance import command_line
from workbench.corpus import Corpus, as_corpus
from workbench.dictionaries.codes import Codes
from workbench.dictionaries.neurons import Neurons
from workbench.dictionaries.protocol import Dictionary
from workbench.harvest import Activations, Harvest
from workbench.index.annotations import People
from workbench.index.append_files import GrowingFiles
from workbench.index.feature_index import FeatureIndex, identity
from workbench.index.layout import BUILDING, DATA, NOTE, PEOPLE, FeatureIndexError, read_note, save_json, write_note
from workbench.index.promoted_tokens import lens, neighbours
from workbench.index.selection import LEAST_KEPT
from workbench.index.spool import DenseSpool, SparseSpool, Spool
from workbench.index.tokens import write_tokens
from workbench.index.writer import write_entries
from workbench.interventions.features import dictionary_of
from workbench.model.language_model import LanguageModel, uninterrupted

NEURONS_KEPT = 512
"""Entries kept per neuron where `keep` is not given: every neuron has a value at every token."""
COLUMNS = ("tokens", "texts", "positions")
_READING = 0.9
"""Share of the time that the pass takes, about."""


def build_index(
    model: LanguageModel, dictionary: Dictionary | str, corpus: Corpus, path: str | Path, **how: Any
) -> FeatureIndex:
    """Build the index of one dictionary in the folder `path`; settings and errors as in `build_indexes`."""
    return build_indexes(model, {path: dictionary}, corpus, **how)[0]


def build_indexes(
    model: LanguageModel,
    dictionaries: Mapping[Any, Dictionary | str],
    corpus: Corpus,
    *,
    tokens: int | None = None,
    context: int = 256,
    batch: int = 16,
    seed: int = 0,
    keep: int | None = None,
    commit_every: float = 5.0,
    progress: Progress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[FeatureIndex]:
    """Build several indexes in one pass over a corpus, under no interventions.

    A folder that holds the very index asked for is opened as it is; one that holds another is built anew, and what
    people wrote stays. A call that was stopped goes on when it is made again with the same settings.

    Args:
        model: the model.
        dictionaries: by folder, a dictionary, or a layer's neurons by name, such as "neurons.29.gate".
        corpus: the texts.
        tokens, context, batch, seed: what is read, as in `Harvest`.
        keep: entries kept per feature, from 60; the highest half and as many evenly spaced among the rest, besides
            all in the windows around a card's examples. None keeps all, and `NEURONS_KEPT` for neurons, of which a
            third are the highest and a third the lowest.
        commit_every: seconds between commits.
        progress: told the share done and an estimate of the time left.
        cancel: asked before each batch; once it says True, building stops with a `FeatureIndexError`.

    Returns:
        The indexes in the order of `dictionaries`, with model and dictionary.

    Raises:
        FeatureIndexError: a dictionary without a hook point or with another width, a folder with labels for another
            dictionary, a setting out of range, or the building was cancelled.
        CorpusError: no text, or a model without a tokenizer.
    """
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < LEAST_KEPT):
        raise FeatureIndexError(f"keep is a number of entries from {LEAST_KEPT}, or None for all, not {keep!r}.")
    as_corpus(corpus)
    if not dictionaries:
        raise FeatureIndexError("There is no dictionary to build an index for.")
    named = {Path(path): _named(model, dictionary) for path, dictionary in dictionaries.items()}
    points = sorted({dictionary.reads for dictionary in named.values()})
    harvest = Harvest(model, corpus, points, tokens, context, batch, seed)
    jobs = [_Job(path, model, dictionary, harvest, keep) for path, dictionary in named.items()]
    todo = [job for job in jobs if not job.finished()]
    _read(harvest, todo, commit_every, progress, cancel)
    for number, job in enumerate(todo):
        done = _READING + (1 - _READING) * number / len(todo)

        def check(share: float, done: float = done, job: _Job = job) -> None:
            _stop_if(cancel)
            if progress:
                progress(done + share * (1 - _READING) / len(todo), f"Sorting {job.path.name}")

        job.finish(check)
    return [FeatureIndex(job.path, model, job.dictionary) for job in jobs]


class _Job:
    """One index on its way."""

    def __init__(self, path: Path, model: LanguageModel, dictionary: Dictionary, harvest: Harvest, keep: int | None):
        self.path, self.model, self.dictionary, self.corpus = path, model, dictionary, harvest.corpus
        dense = isinstance(dictionary, Neurons)
        own = {name: getattr(dictionary, name) for name in ("name", "kind", "reads", "writes", "n_features")}
        settings = harvest.settings()
        del settings["hook_points"], settings["shard"], settings["repeat"]
        self.note: dict[str, Any] = {
            "dictionary": own | {"hash": identity(model, dictionary), "provenance": dictionary.provenance},
            "harvest": settings,
            "keep": NEURONS_KEPT if dense and keep is None else keep,
            "signed": dense,
        }
        self.building = path / BUILDING
        _check_ours(path)
        People(path / PEOPLE, self.note["dictionary"]["hash"])  # complains if the labels there are of another
        self.spool: Spool = (DenseSpool if dense else SparseSpool)(self.building, dictionary.n_features)
        self._files: list[GrowingFiles] = []

    def finished(self) -> bool:
        """Whether this very index is there already."""
        if not (self.path / DATA / NOTE).exists():
            return False
        try:
            found = read_note(self.path)
        except FeatureIndexError:
            return False
        if any(found.get(name) != value for name, value in _plain(self.note).items()):
            return False
        shutil.rmtree(self.building, ignore_errors=True)
        return True

    def committed(self) -> int:
        """Tokens of an earlier call that count; its work is thrown away if it was on something else."""
        try:
            found = json.loads((self.building / "progress.json").read_text())
            if found["note"] == _plain(self.note):
                return int(found["committed"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        shutil.rmtree(self.building, ignore_errors=True)
        return 0

    def open(self, tokens: int) -> None:
        """Make ready to append behind the first `tokens` tokens."""
        self.building.mkdir(parents=True, exist_ok=True)
        self._files = [
            self.spool.open(tokens),
            GrowingFiles(self.building, {f"{name}.bin": 4 * tokens for name in COLUMNS}),
        ]

    def append(self, part: Activations) -> None:
        """Encode the next tokens."""
        with torch.no_grad():
            codes = self.dictionary.encode(part.values[self.dictionary.reads])
        columns = codes.values.shape[-1]
        self.spool.append(Codes(codes.values.view(-1, columns), codes.indices.view(-1, columns), codes.n_features))
        for name in COLUMNS:
            self._files[1].add(f"{name}.bin", getattr(part, name).numpy().astype(np.int32))

    def commit(self, tokens: int) -> None:
        """Say that so many tokens count, once they have reached the disk."""
        for files in self._files:
            files.commit()
        save_json(self.building / "progress.json", {"note": self.note, "committed": tokens})

    def close(self) -> None:
        """Close all files."""
        for files in self._files:
            files.close()

    def finish(self, check: Callable[[float], None]) -> None:
        """Write the index and throw the work away."""
        columns = {name: np.fromfile(self.building / f"{name}.bin", np.int32) for name in COLUMNS}
        if len(columns["tokens"]) == 0:
            raise FeatureIndexError(f"{self.corpus.name} has no token that is not special.")
        note = self.note | {
            "n_tokens": len(columns["tokens"]),
            "corpus": {"name": self.corpus.name, "source": self.corpus.source, "licence": self.corpus.licence},
            "versions": {name: version(name) for name in ("torch", "transformers", "numpy", "pyarrow")},
            "command": command_line(),
        }
        with replacing(self.path / DATA) as folder:
            folder.mkdir()
            check(0.0)
            relations = lens(self.model, self.dictionary) | neighbours(self.model, self.dictionary)
            check(0.2)
            write_tokens(folder, columns, self.model, self.corpus, relations["promoted"], relations["suppressed"])
            check(0.3)
            write_entries(folder, self.spool, note, relations, check)
            write_note(folder, note)
        shutil.rmtree(self.building)


def _check_ours(path: Path) -> None:
    """Complain where `data` or `building` holds what no index has written: both are replaced."""
    data, building = path / DATA, path / BUILDING
    if data.exists() and not (data / NOTE).is_file():
        raise FeatureIndexError(f"{data} is there already and is no index; choose another folder for the index.")
    if building.exists() and not (building.is_dir() and all(_written_here(one) for one in building.iterdir())):
        raise FeatureIndexError(f"{building} is there already and is no unfinished index; choose another folder.")


def _written_here(file: Path) -> bool:
    return file.is_file() and (file.suffix == ".bin" or file.name.strip(".").startswith("progress.json"))


def _read(
    harvest: Harvest,
    jobs: list[_Job],
    commit_every: float,
    progress: Progress | None,
    cancel: Callable[[], bool] | None,
) -> None:
    """The pass: every job gets the codes of every token."""
    if not jobs:
        return
    each = [job.committed() for job in jobs]
    rows = min(each)
    said: Progress | None = (lambda share, words: progress(_READING * share, words)) if progress else None
    try:
        for job in jobs:
            job.open(rows)
        committed_at = time.monotonic()
        with uninterrupted():
            for part in harvest.run(rows, progress=said, cancel=cancel):
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
    _stop_if(cancel)


def _stop_if(cancel: Callable[[], bool] | None) -> None:
    if cancel is not None and cancel():
        raise FeatureIndexError("Building was cancelled; the same call goes on where it stopped.")


def _named(model: LanguageModel, dictionary: Dictionary | str) -> Dictionary:
    """A dictionary that fits the model."""
    if isinstance(dictionary, str):
        return dictionary_of(model, f"{dictionary}:0")
    if not dictionary.reads:
        raise FeatureIndexError(f"{dictionary.name} has no hook point yet; set its .reads and .writes.")
    width = model.hook_points[dictionary.reads].width
    if width != dictionary.d_in:
        raise FeatureIndexError(
            f"{dictionary.name} reads activations of width {dictionary.d_in:,}, "
            f"but {dictionary.reads} of {model.name} is {width:,} wide."
        )
    return dictionary


def _plain(note: dict[str, Any]) -> dict[str, Any]:
    """As it reads after JSON."""
    return json.loads(json.dumps(note))

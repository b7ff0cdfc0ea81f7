"""The build of one index: its note, its files while the corpus is read, and the finished index."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from typing_extensions import TypedDict

from workbench.core.checks import Natural
from workbench.core.failures import explained
from workbench.core.files import clear_leftovers, replacing
from workbench.core.forms import read_json
from workbench.core.locks import alone, clear_lock
from workbench.core.provenance import command_line
from workbench.core.settings import difference
from workbench.dictionaries.codes import Codes
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import follow, gather
from workbench.harvest import Activations, Harvest
from workbench.index.annotations import Annotations
from workbench.index.append_files import AppendFiles
from workbench.index.feature_index import FeatureIndex
from workbench.index.identity import former_identity, identity
from workbench.index.layout import (
    ANNOTATIONS,
    BUILDING,
    DATA,
    NOTE,
    PATTERNS,
    PROGRESS,
    FeatureIndexError,
    check_ours,
    save_json,
    write_note,
)
from workbench.index.promoted_tokens import neighbours, promoted_tokens
from workbench.index.spool import DenseSpool, SparseSpool, Spool
from workbench.index.tokens import write_tokens
from workbench.index.writer import write_entries
from workbench.model.language_model import LanguageModel

NEURONS_KEPT = 512
"""Entries kept per neuron where `keep` is None: every neuron has a value at every token."""
COLUMNS = ("tokens", "texts", "positions")


class SavedProgress(TypedDict):
    """The file of an unfinished build."""

    note: dict[str, Any]
    committed: Natural


class IndexBuild:
    """The build of one index."""

    def __init__(self, path: Path, model: LanguageModel, dictionary: Dictionary, harvest: Harvest, keep: int | None):
        self.path, self.model, self.dictionary, self.corpus = path, model, dictionary, harvest.corpus
        follow(dictionary, model)
        dense = dictionary.dense
        own = {name: getattr(dictionary, name) for name in ("name", "kind", "reads", "writes", "n_features")}
        hashes = {"hash": identity(model, dictionary), "former_hash": former_identity(model, dictionary)}
        settings = harvest.settings()
        del settings["hook_points"], settings["shard"], settings["repeat"]
        self.note: dict[str, Any] = {
            "dictionary": own | hashes | {"provenance": dictionary.provenance},
            "harvest": settings,
            "keep": NEURONS_KEPT if dense and keep is None else keep,
            "signed": dense,
        }
        self.building = path / BUILDING
        check_ours(path)
        Annotations(path / ANNOTATIONS, *hashes.values())  # raises for labels of another dictionary
        self.spool: Spool = (DenseSpool if dense else SparseSpool)(self.building, dictionary.n_features)
        self._files: list[AppendFiles] = []

    def finished(self) -> FeatureIndex | None:
        """The index of the same note that is there already."""
        if not (self.path / DATA / NOTE).exists():
            return None
        try:
            index = FeatureIndex(self.path, self.model, self.dictionary)
        except FeatureIndexError:
            return None
        if difference({name: index.about.get(name) for name in self.note}, _plain(self.note)):
            return None
        if self.building.exists():
            with contextlib.suppress(FeatureIndexError), alone(self.path, FeatureIndexError):  # or another one builds
                shutil.rmtree(self.building, ignore_errors=True)
        clear_leftovers(self.path / DATA)
        clear_lock(self.path)
        return index

    def committed(self) -> int:
        """Tokens that an earlier call committed; the files of a build with another note are removed."""
        with contextlib.suppress(FeatureIndexError):
            saved = read_json(self.building / PROGRESS, SavedProgress, FeatureIndexError, "the progress of a build")
            if not difference(saved["note"], _plain(self.note)):
                return saved["committed"]
        shutil.rmtree(self.building, ignore_errors=True)
        return 0

    def open(self, tokens: int) -> None:
        """Open the files to append behind the first `tokens` tokens."""
        with explained(self.building, FeatureIndexError):
            self.building.mkdir(parents=True, exist_ok=True)
            self._files = [
                self.spool.open(tokens),
                AppendFiles(self.building, {f"{name}.bin": 4 * tokens for name in COLUMNS}),
            ]

    def append(self, part: Activations) -> None:
        """Append the codes of the next tokens."""
        with torch.no_grad():
            codes = self.dictionary.encode(gather(part.values, self.dictionary.read_points))
        columns = codes.values.shape[-1]
        with explained(self.building, FeatureIndexError):
            self.spool.append(Codes(codes.values.view(-1, columns), codes.indices.view(-1, columns), codes.n_features))
            for name in COLUMNS:
                self._files[1].add(f"{name}.bin", getattr(part, name).cpu().numpy().astype(np.int32))

    def commit(self, tokens: int) -> None:
        """Record the number of tokens, after they have reached the disk."""
        with explained(self.building, FeatureIndexError):
            for files in self._files:
                files.commit()
        save_json(self.building / PROGRESS, {"note": self.note, "committed": tokens}, owned=True)

    def close(self) -> None:
        """Close all files; what was not committed may be lost."""
        for files in self._files:
            with contextlib.suppress(OSError):  # of a full disk, which an error has told
                files.close()

    def finish(self, check: Callable[[float], None]) -> None:
        """Write the index and remove the files of the build."""
        columns = {name: np.fromfile(self.building / f"{name}.bin", np.int32) for name in COLUMNS}
        if len(columns["tokens"]) == 0:
            raise FeatureIndexError(f"{self.corpus.name} has no token that is not special.")
        note = self.note | {
            "n_tokens": len(columns["tokens"]),
            "corpus": {"name": self.corpus.name, "source": self.corpus.source, "licence": self.corpus.licence},
            "versions": {name: version(name) for name in ("torch", "transformers", "numpy", "pyarrow")},
            "command": command_line(),
        }
        with replacing(self.path / DATA, FeatureIndexError, own=PATTERNS, note=NOTE) as folder:
            folder.mkdir()
            check(0.0)
            relations = promoted_tokens(self.model, self.dictionary) | neighbours(self.model, self.dictionary)
            check(0.2)
            write_tokens(folder, columns, self.model, self.corpus, relations["promoted"], relations["suppressed"])
            check(0.3)
            write_entries(folder, self.spool, note, relations, check)
            write_note(folder, note)
        shutil.rmtree(self.building, ignore_errors=True)


def _plain(note: dict[str, Any]) -> dict[str, Any]:
    """The note as it reads back from JSON."""
    return json.loads(json.dumps(note))

"""What every dictionary promises: it reads at one hook point, writes at one, and turns activations into sparse codes.

A dictionary is pure tensor maths. It names hook points but knows no model, and opens no file but its own weights. A
kind registers itself under its `kind` word by being defined; loading, training and the tests' laws find it there.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from workbench.core.hashing import fingerprint
from workbench.dictionaries.acting import Splice
from workbench.dictionaries.features import Feature, FeatureError
from workbench.dictionaries.folder import CONFIG, DictionaryError, read_folder, write_folder
from workbench.dictionaries.saelens import understood

FORMAT = 1
"""Version of our own fields in `cfg.json`."""
BUNDLED = Path(__file__).resolve().parents[2] / "data" / "dictionaries"
"""Where the dictionaries are that come with Workbench."""

Change = tuple[int, Callable[[Tensor], Tensor]]
"""A feature's index and what its value `[...]` becomes."""
Rewrite = Callable[["Codes"], "Codes"]
"""What becomes of all codes of an activation together; it may add columns."""


@dataclass(frozen=True)
class Codes:
    """Sparse features: for each activation the features that are present, and how strongly."""

    values: Tensor
    """`[..., k]`; 0 means absent."""
    indices: Tensor
    """`[..., k]`, whole numbers in 0 … n_features - 1."""
    n_features: int
    """Size of the dictionary they belong to."""

    def dense(self) -> Tensor:
        """The same codes with a column for every feature: `[..., n_features]`."""
        full = self.values.new_zeros(*self.values.shape[:-1], self.n_features)
        return full.scatter_add(-1, self.indices, self.values)

    def value_of(self, index: int) -> Tensor:
        """The value of one feature: `[...]`, 0 where it is absent."""
        return torch.where(self.indices == index, self.values, 0).sum(-1)

    def with_value(self, index: int, value: Tensor) -> Codes:
        """The same codes, but with this value `[...]` of one feature."""
        others = self.values.masked_fill(self.indices == index, 0)
        column = self.indices.new_full((*self.indices.shape[:-1], 1), index)
        return Codes(
            torch.cat([others, value.unsqueeze(-1)], -1), torch.cat([self.indices, column], -1), self.n_features
        )


class Dictionary(nn.Module):
    """Features at a hook point.

    Kinds differ in `encode` and `decode`; all else follows from these and from the attributes below, which a kind sets
    when it is built.
    """

    kinds: ClassVar[dict[str, type[Dictionary]]] = {}
    """Every kind by its word."""

    kind: str
    """The word under which the kind is registered; a class without one is a base for kinds."""
    noun: ClassVar[str] = "latent"
    """What one of its features is called, in the singular."""
    transcodes: ClassVar[bool] = False
    """Whether it reads at one hook point and writes at another, as a transcoder does."""
    discrete: ClassVar[bool] = False
    """Whether a feature is a code that is present or absent, which `force` can activate."""
    reads: str = ""
    """Hook point of the activations it encodes; empty until it is known."""
    writes: str = ""
    """Hook point of the activations it reconstructs; empty until it is known."""
    d_in: int
    d_out: int
    n_features: int
    groups: int = 1
    """Parts of equal size into which the features are divided, in their order; each part describes its own share."""
    provenance: dict[str, Any]
    """What it was made from and how, as plain data; kept on disk."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        kind = cls.__dict__.get("kind")
        if kind is None:
            return
        other = Dictionary.kinds.setdefault(kind, cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"Two kinds of dictionary are called {kind!r}: {other.__module__} and {cls.__module__}.")
        Dictionary.kinds[kind] = cls

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.provenance = {}
        self._given_name = name
        self._folder = ""

    @property
    def name(self) -> str:
        """What features call it, the part of a feature id before the colon.

        The name it was given; without one, the folder it was last saved to or loaded from; before that, its kind.
        """
        return self._given_name or self._folder or self.kind

    @name.setter
    def name(self, name: str) -> None:
        self._given_name = name

    @property
    def hash(self) -> str:
        """SHA-256 over its tensors' names, shapes, types and bytes, in hex."""
        return fingerprint(self.tensors())

    @abstractmethod
    def encode(self, x: Tensor) -> Codes:
        """Activations at `reads` `[..., d_in]` as codes."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Codes as activations at `writes` `[..., d_out]`; affine in the values."""

    @abstractmethod
    def direction(self, index: int) -> Tensor:
        """What one unit of the feature adds at `writes`: `[d_out]`."""

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """A small one with random weights, to try things on."""

    def reconstruct(self, x: Tensor, codes: Codes | None = None) -> Tensor:
        """Activations at `writes` `[..., d_out]` from those at `reads` `[..., d_in]`, with these codes or their own.

        It is `decode(codes)`, and in kinds with a path past the codes what goes along it.
        """
        return self.decode(self.encode(x) if codes is None else codes)

    def feature(self, index: int) -> Feature:
        """One coordinate of this dictionary; raises `FeatureError` if it has no such coordinate."""
        self.check(index)
        return Feature(self.name, index, source=self)

    def check(self, index: int) -> None:
        """Raise `FeatureError` unless `index` is a coordinate of this dictionary."""
        if isinstance(index, bool) or not isinstance(index, Integral) or not 0 <= int(index) < self.n_features:
            raise FeatureError(
                f"{self.name} has {self.n_features:,} features, 0 to {self.n_features - 1}; there is no {index!r}."
            )

    def force(self, codes: Codes, index: int, replaces: str) -> Codes:
        """Codes in which a discrete feature is active in place of others, one column in front of the old ones.

        `Codebook.force` says how.

        Raises:
            DictionaryError: the dictionary's features are not discrete.
        """
        raise DictionaryError(
            f"{self.name} has no discrete codes to force; hold its feature {index} at a value with Clamp."
        )

    def intervene(self, read: Tensor, written: Tensor, changes: Sequence[Change | Rewrite]) -> Tensor:
        """Add `decode(edited codes) - decode(codes)`, leaving alone what the dictionary does not explain.

        Args:
            read: activations at `reads`, `[..., d_in]`.
            written: activations at `writes`, `[..., d_out]`.
            changes: applied in order; a later change of the same feature sees what an earlier one left.

        Returns:
            The new activations at `writes`, `[..., d_out]`.
        """
        codes = self.encode(read)
        values = [change for change in changes if isinstance(change, tuple)]
        if len(values) < len(changes):
            edited = codes
            for change in changes:
                if isinstance(change, tuple):
                    edited = edited.with_value(change[0], change[1](edited.value_of(change[0])))
                else:
                    edited = change(edited)
            difference = self.decode(edited) - self.decode(codes)
            return torch.where(difference == 0, written, written + difference)
        start: dict[int, Tensor] = {}
        now: dict[int, Tensor] = {}
        for index, change in values:
            if index not in start:
                start[index] = now[index] = codes.value_of(index)
            now[index] = change(now[index])
        for index, value in now.items():
            difference = (value - start[index]).unsqueeze(-1)  # [..., 1]
            # where nothing changed the activation keeps its bits
            written = torch.where(difference == 0, written, written + difference * self.direction(index))
        return written

    def splice(self, hook_point: str) -> Splice:
        """This dictionary in the place of what a model has at a hook point; `LanguageModel.spliced` takes it there."""
        return Splice(self, hook_point)

    def config(self) -> dict[str, Any]:
        """What `cfg.json` says, in SAELens's field names where it has one; plain data."""
        raise DictionaryError(f"{self.name} has no weights of its own to save: {self.kind} belong to the model.")

    def tensors(self) -> dict[str, Tensor]:
        """The weights by the names they have on disk."""
        return dict(self.state_dict())

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `config()` and `tensors()`; raises `DictionaryError` if the two do not fit together."""
        raise DictionaryError(f"{cls.kind} belong to a model and are not read from a folder.")

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write the dictionary to a folder; other files there are left alone.

        Args:
            path: the folder.
            half: keep 16 bits of each weight; it is read as float32 all the same.

        Raises:
            DictionaryError: the kind has no weights, one that does not fit into 16 bits, or the folder can't be
                written.
        """
        tensors = self.tensors()
        if half:
            tensors = {name: one.half() if one.is_floating_point() else one for name, one in tensors.items()}
            wrong = [name for name, one in tensors.items() if not bool(one.isfinite().all())]
            if wrong:
                raise DictionaryError(f"A value in {wrong[0]} of {self.name} does not fit into 16 bits; save it whole.")
        own = {"format": FORMAT, "kind": self.kind, "name": self._given_name, "reads": self.reads}
        own |= {"writes": self.writes, "sha256": fingerprint(tensors), "provenance": self.provenance}
        config = self.config()
        config["workbench"] = config.get("workbench", {}) | own
        write_folder(Path(path), config, tensors)
        self._folder = str(Path(path))


def load_dictionary(path: str | Path) -> Dictionary:
    """Read a dictionary from the folder that `save` or SAELens wrote.

    Args:
        path: the folder, or the name of a dictionary that comes with Workbench, such as "resid-15".

    Raises:
        DictionaryError: there is none, it is damaged, or of a kind that this version does not know.
    """
    folder = Path(path)
    if not folder.exists() and str(path) in bundled():
        folder = BUNDLED / folder
    elif not folder.exists() and bundled():
        raise DictionaryError(f"There is no folder {path}; {', '.join(bundled())} come with Workbench.")
    config, tensors = read_folder(folder)
    try:
        made = _made(config, tensors)
    except KeyError as error:
        raise DictionaryError(f"{folder} can't be used: its cfg.json lacks {error}.") from error
    except (DictionaryError, TypeError, ValueError, AttributeError) as error:
        raise DictionaryError(f"{folder} can't be used: {str(error).rstrip('.')}.") from error
    made._folder = str(folder)
    return made


def bundled() -> list[str]:
    """The names of the dictionaries that come with Workbench."""
    return sorted(file.parent.name for file in BUNDLED.glob(f"*/{CONFIG}"))


def _made(config: dict[str, Any], tensors: dict[str, Tensor]) -> Dictionary:
    """The dictionary that a folder describes; errors say what is wrong, not where."""
    own = config.get("workbench") or {}
    if own.get("format", FORMAT) != FORMAT:
        raise DictionaryError(
            f"it is in format {own['format']} and this version reads format {FORMAT}; "
            "open it with the version that wrote it, or train it anew"
        )
    if "sha256" in own and own["sha256"] != fingerprint(tensors):
        raise DictionaryError("its weights are not those that were saved with its cfg.json; copy both files again")
    config, tensors = understood(config, tensors)
    word = own.get("kind") or config["architecture"]
    kind = Dictionary.kinds.get(word)
    if kind is None:
        known = ", ".join(sorted(Dictionary.kinds))
        raise DictionaryError(f"it is of the kind {word!r}, which this version does not know; it knows {known}")
    made = kind.from_config(config, tensors)
    metadata = config["metadata"]
    made.reads = own.get("reads") or metadata.get("hook_name") or ""
    made.writes = own.get("writes") or metadata.get("hook_name_out") or made.reads
    made.name = own.get("name") or ""
    made.provenance = own.get("provenance") or {}
    return made

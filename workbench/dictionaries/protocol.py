"""The base of all dictionaries: it reads at hook points, writes at hook points, and makes activations sparse codes.

A dictionary holds tensors and names hook points; it knows no model and opens no file but its own weights. The
definition of a kind registers it under its word `kind`, where loading, training and the law tests look it up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from workbench.core.checks import as_integer, checked
from workbench.core.display import Shown
from workbench.core.hashing import fingerprint, hash_of
from workbench.core.text import counted
from workbench.core.type_words import reason_of, shortened, shown
from workbench.dictionaries.acting import Splice
from workbench.dictionaries.codes import Change, Codes, Rewrite, everywhere
from workbench.dictionaries.features import Feature, FeatureError
from workbench.dictionaries.folder import FORMAT, DictionaryError, check_finite, write_folder
from workbench.dictionaries.normalising import NONE, scale_of
from workbench.dictionaries.remembered import held_tensors, remember_hash, remembered_hash
from workbench.dictionaries.sites import Stage
from workbench.dictionaries.writing import write_as
from workbench.model.edits import Masks
from workbench.model.grad_mode import lasting

JOIN = " + "
"""What stands between the names of several hook points."""
IDENTITY = 2
"""Version of the identity; version 1 was the hash of the tensors alone."""


class Dictionary(nn.Module, ABC, Shown):
    """Features at a hook point.

    Kinds differ in `encode` and `decode`; all else follows from these and from the attributes below, which a kind sets
    when it is built.
    """

    kinds: ClassVar[dict[str, type[Dictionary]]] = {}
    """Every kind by its word."""

    kind: str
    """The word under which the kind is registered; a class without one is a base for kinds."""
    also_called: ClassVar[tuple[str, ...]] = ()
    """Further words by which folders name the kind."""
    noun: ClassVar[str] = "latent"
    """What one of its features is called, in the singular."""
    transcodes: ClassVar[bool] = False
    """Whether it reads at one hook point and writes at another, as a transcoder does."""
    discrete: ClassVar[bool] = False
    """Whether a feature is a code that is present or absent, which `force` can activate."""
    of_model: ClassVar[bool] = False
    """Whether the model brings the features: a name is enough to make the dictionary, which has no weights of its own,
    was not trained, and is identified by the model's hash."""
    dense: ClassVar[bool] = False
    """Whether a feature is a coordinate of the hook point itself: each has a value of either sign at every token, and a
    change of one sets that coordinate."""
    across: ClassVar[bool] = False
    """Whether it reads and writes at several hook points."""
    opened_by: ClassVar[str] = "wb.load_dictionary"
    """The function that makes one of a text; sentences name it where a text stands in a dictionary's place."""
    reads: str = ""
    """Hook point of the activations it encodes; empty until it is known. Several are joined by " + ", which is no name
    of a hook point: what does not know of several refuses it."""
    writes: str = ""
    """Hook point of the activations it reconstructs, or several, as in `reads`; empty until it is known."""
    n_reads: int = 1
    """Number of hook points that it reads at; their activations, of equal widths, stand one behind the other."""
    n_writes: int = 1
    """Number of hook points that it writes at."""
    d_in: int
    """Width of the activations that it encodes, of all hook points together."""
    d_out: int
    """Width of the activations that it reconstructs, of all hook points together."""
    n_features: int
    lazy: bool = False
    """Whether its weights are looked at where they are used, and not when it is opened: they may be larger than any
    memory."""
    normalises: str = NONE
    """The rule of `normalising.RULES` by which each activation is normalised before it is encoded."""
    groups: int = 1
    """Parts of equal size into which the features are divided, in their order; each part describes its own share."""
    provenance: dict[str, Any]
    """Source and settings of its training, as plain data; kept on disk."""
    folder: str
    """Where it was last saved to or loaded from; empty before that."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = lasting(cls.__init__)
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
        self.folder = ""
        self._given_name = name

    @property
    def name(self) -> str:
        """Its name in feature ids, the part before the colon.

        It is the name set by the caller; without one, the `folder`; without that, the kind.
        """
        return self._given_name or self.folder or self.kind

    @name.setter
    def name(self, name: str) -> None:
        self._given_name = name

    def extra_repr(self) -> str:
        """Its name, size and place, at the head of what `print` shows."""
        places = " → ".join(dict.fromkeys(place for place in (self.reads, self.writes) if place))
        at = shortened(places or "no hook point", 200)
        return f"{self.name!r}, {self.n_features:,} features, {self.d_in} → {self.d_out}, at {at}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    @property
    def read_points(self) -> tuple[str, ...]:
        """The hook points of `reads`, one by one."""
        return tuple(self.reads.split(JOIN)) if self.reads else ()

    @property
    def write_points(self) -> tuple[str, ...]:
        """The hook points of `writes`, one by one."""
        return tuple(self.writes.split(JOIN)) if self.writes else ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its features by where they read and write: one stage, unless a kind has features of several layers."""
        return (Stage(range(self.n_features), tuple(range(self.n_reads)), tuple(range(self.n_writes))),)

    @property
    def hash(self) -> str:
        """SHA-256 over all that decides what it does on a model, in hex: tensors, kind, settings, hook points."""
        return self._whole_hash(self.tensors_hash)

    @property
    def tensors_hash(self) -> str:
        """SHA-256 over its tensors' names, shapes, types and bytes, in hex: what `hash` was in older versions.

        It is remembered while parameters and buffers keep their memory and their version, which torch counts up at each
        change in place, except through `.data`.
        """
        return remembered_hash(self) or remember_hash(self, fingerprint(self.tensors()))

    def _whole_hash(self, tensors: str) -> str:
        return hash_of([IDENTITY, tensors, self.reads, self.writes, self.deciding_settings()])

    def is_named(self, recorded: str | None) -> bool:
        """Whether a record means this dictionary: by its `hash`, or as older versions did by its tensors alone."""
        tensors = self.tensors_hash
        return recorded in (tensors, self._whole_hash(tensors))

    def deciding_settings(self) -> dict[str, Any]:
        """The settings on which its codes and reconstructions depend, beside its tensors, as plain data."""
        if self.of_model:
            return {"kind": self.kind}
        config = self.config()
        return {"kind": config.get("architecture", self.kind)} | config.get("workbench", {}).get("settings", {})

    @property
    def mlp_site(self) -> tuple[int, str] | None:
        """Layer and site (`gate`, `up` or `post`) of the MLP whose neurons are the features; None for other features.

        Such a feature has a vector in the residual stream of the model (`Network.neuron_weights`).
        """
        return None

    @abstractmethod
    def encode(self, x: Tensor) -> Codes:
        """Activations at `reads` `[..., d_in]` as codes."""

    @abstractmethod
    def decode(self, codes: Codes) -> Tensor:
        """Codes as activations at `writes` `[..., d_out]`; affine in the values; see `rescales`."""

    @abstractmethod
    def direction(self, index: int) -> Tensor:
        """The change at `writes` per unit of the feature: `[d_out]`; see `rescales`."""

    @property
    def rescales(self) -> bool:
        """Whether a reconstruction is brought back from normalised units, by a factor of each activation.

        `decode` and `direction` are then in normalised units. `reconstruct`, `intervene` and `splice` are in the
        activations' own.
        """
        return self.normalises != NONE and not self.transcodes

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """A small dictionary of this kind with random weights, for tests."""

    def reconstruct(self, x: Tensor, codes: Codes | None = None) -> Tensor:
        """Activations at `writes` `[..., d_out]` from those at `reads` `[..., d_in]`, through `codes` or `encode(x)`.

        It is `decode(codes)`, plus the skip path in kinds that have one.
        """
        return self.decode(self.encode(x) if codes is None else codes)

    def feature(self, index: int) -> Feature:
        """One coordinate of this dictionary; raises `FeatureError` if it has no such coordinate."""
        self.check(index)
        return Feature(self.name, index, source=self)

    def check(self, index: int) -> None:
        """Raise `FeatureError` unless `index` is a coordinate of this dictionary."""
        number = as_integer(index)
        if number is None or not 0 <= number < self.n_features:
            raise FeatureError(
                f"{self.name} has {counted(self.n_features, 'feature')}, 0 to {self.n_features - 1}; there is no "
                f"{shown(index)}."
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

    def intervene(
        self, read: Tensor, written: Tensor, changes: Sequence[Change | Rewrite], masks: Masks = everywhere
    ) -> Tensor:
        """The activations plus `decode(edited codes) - decode(codes)`; the reconstruction error stays in them.

        The difference is in the activations' own units where the dictionary `rescales`.

        Args:
            read: activations at `reads`, `[..., d_in]`.
            written: activations at `writes`, `[..., d_out]`.
            changes: applied in order; a later change of the same feature sees what an earlier one left.
            masks: where each of them acts, by its rule.

        Returns:
            The new activations at `writes`, `[..., d_out]`.
        """
        codes = self.encode(read)
        values = [change for change in changes if isinstance(change, Change)]
        if len(values) < len(changes):
            edited = codes
            for change in changes:
                if isinstance(change, Change):
                    edited = edited.with_value(change.index, change.apply(edited.value_of(change.index), masks))
                else:
                    edited = change.apply(edited, masks)
            difference = self.decode(edited) - self.decode(codes)
            if self.rescales:
                difference = difference * scale_of(read.to(difference.dtype), self.normalises)
            return torch.where(difference == 0, written, written + difference)
        start: dict[int, Tensor] = {}
        now: dict[int, Tensor] = {}
        for change in values:
            if change.index not in start:
                start[change.index] = now[change.index] = codes.value_of(change.index)
            now[change.index] = change.apply(now[change.index], masks)
        for index, value in now.items():
            difference = (value - start[index]).unsqueeze(-1)  # [..., 1]
            if self.rescales:
                difference = difference * scale_of(read.to(difference.dtype), self.normalises)
            # where nothing changed the activation keeps its bits
            written = torch.where(difference == 0, written, written + difference * self.direction(index))
        return written

    def encode_stage(self, number: int, x: Tensor) -> Codes:
        """The codes of the features of one of `stages`, from the activations where it reads; indices are as ever."""
        return self.encode(x)

    def reconstruct_stage(self, number: int, x: Tensor, codes: Codes) -> Tensor:
        """A stage's share of `reconstruct` where it writes; the shares of all stages sum to it."""
        return self.reconstruct(x, codes)

    def splice(self, hook_point: str) -> Splice:
        """A splice of this dictionary at a hook point, for `LanguageModel.spliced`."""
        return Splice(self, hook_point)

    def config(self) -> dict[str, Any]:
        """The content of `cfg.json`, in SAELens's field names where it has one; plain data."""
        raise DictionaryError(f"{self.name} has no weights of its own to save: {self.kind} belong to the model.")

    def tensors(self) -> dict[str, Tensor]:
        """The weights by the names they have on disk."""
        return dict(self.state_dict())

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `config()` and `tensors()`; raises `DictionaryError` if the two do not fit together."""
        raise DictionaryError(f"{cls.kind} belong to a model and are not read from a folder.")

    @staticmethod
    def kind_called(word: str) -> type[Dictionary]:
        """The kind whose word this is, or that is also called so.

        Raises:
            DictionaryError: there is none.
        """
        for kind in Dictionary.kinds.values():
            if word == kind.kind or word in kind.also_called:
                return kind
        known = ", ".join(sorted(Dictionary.kinds))
        raise DictionaryError(f"it is of the kind {shown(word)}, which this version does not know; it knows {known}")

    @checked(DictionaryError)
    def save(self, path: str | Path, *, half: bool = False, format: str | None = None) -> None:
        """Write the dictionary to a folder, which becomes its `folder`; or a copy for another tool.

        Args:
            path: the folder; a set of transcoders gets one more layer.
            half: as in `write`; not for other tools.
            format: of another tool: "saelens", "sparsify", "dictionary_learning" or "circuit_tracer". None for our
                own, which is SAELens's with fields for what SAELens lacks.

        Raises:
            DictionaryError: as in `write`, or the format has no place for this kind.
        """
        if format is None:
            self.write(path, half=half)
            self.folder = str(Path(path))
            return
        if half:
            raise DictionaryError(f"{self.name} is written for other tools with whole weights; leave half out.")
        self.config()  # raises where the features belong to a model
        write_as(format, self, Path(path))

    @checked(DictionaryError)
    def write(self, path: str | Path, *, half: bool = False) -> None:
        """Write a copy of the dictionary to a folder; other files there are left alone.

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
        try:
            check_finite(tensors)
        except DictionaryError as error:
            raise DictionaryError(f"{self.name} can't be saved: {error}.") from error
        own = {"format": FORMAT, "kind": self.kind, "name": self._given_name, "reads": self.reads}
        own |= {"writes": self.writes, "sha256": fingerprint(tensors), "provenance": self.provenance}
        config = self.config()
        config["workbench"] = config.get("workbench", {}) | own
        write_folder(Path(path), config, tensors)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move this dictionary to another device, in place, and return it.

        Arguments are those of `torch.nn.Module.to`. Another device leaves the `hash`; another type makes another
        dictionary.

        Raises:
            DictionaryError: a device that this machine does not have.
        """
        types = {name: tensor.dtype for name, tensor in held_tensors(self).items()}
        known = remembered_hash(self)
        try:
            super().to(*args, **kwargs)
        except (TypeError, ValueError, RuntimeError, AssertionError, ModuleNotFoundError) as error:  # so torch refuses
            raise DictionaryError(f"{self.name} can't be moved: {reason_of(error)}.") from error
        if known is not None and types == {name: tensor.dtype for name, tensor in held_tensors(self).items()}:
            remember_hash(self, known)
        return self

    def _facts(self) -> Mapping[str, object]:
        return {
            "kind": self.kind,
            "name": self.name,
            "features": self.n_features,
            "width": f"{self.d_in} → {self.d_out}",
            "reads": self.reads,
            "writes": self.writes,
        }

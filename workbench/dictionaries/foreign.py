"""What readers of foreign formats share: tensors that are mapped and looked at, and the building of a dictionary."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.core.hashing import HALVES
from workbench.core.npz_files import read_npz
from workbench.core.paths import leads_out
from workbench.core.tensor_files import look_at_file, tensor_places
from workbench.core.torch_files import read_torch
from workbench.core.type_words import shown
from workbench.dictionaries.folder import DictionaryError, check_finite, look
from workbench.dictionaries.origin import plain_name
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.remembered import hold_finite

SHAPES = {"W_enc": 2, "b_enc": 1, "W_dec": 2, "b_dec": 1, "threshold": 1, "W_skip": 2}
"""Numbers of dimensions of the tensors of an encoder-decoder dictionary."""
MATRICES = ("W_enc", "W_dec")
"""Those that such a dictionary keeps in a file's 16 bits until they are used."""


@dataclass(frozen=True)
class Said:
    """What a caller says of a dictionary whose files and path do not say it; empty texts say nothing."""

    reads: str = ""
    writes: str = ""
    """Empty where it writes where it reads."""
    model: str = ""
    ASKED: ClassVar[str] = "say it: load_dictionary(path, hook_point=…), with writes=… for a transcoder"
    """The end of a sentence that asks for it."""

    def check(self, dictionary: Dictionary) -> None:
        """Write what is said into a dictionary, where its files do not say it.

        Raises:
            DictionaryError: its files say something else, or it writes where it reads and another place is said.
        """
        if self.writes and not (self.reads and (dictionary.transcodes or dictionary.across)):
            raise DictionaryError(
                "writes stands beside hook_point, for a dictionary that reads at one place and writes at another"
            )
        unsaid = "" if dictionary.transcodes or dictionary.across else self.reads
        for name, said in (("reads", self.reads), ("writes", self.writes or unsaid)):
            stated = getattr(dictionary, name)
            if said and stated and said != stated:
                raise DictionaryError(f"its files say that it {name} at {stated}, and not at {shown(said)}")
            setattr(dictionary, name, stated or said)
        stated = dictionary.provenance.get("model_name")
        if self.model and stated and plain_name(stated) != plain_name(self.model):
            raise DictionaryError(f"its files say that it was made for {stated}, and not for {shown(self.model)}")
        if self.model and not stated:
            dictionary.provenance["model_name"] = self.model


def mapped_safetensors(file: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped; every value is looked at once.

    Args:
        file: the file.
        what: the file in the sentence of an error: "its params.safetensors".

    Raises:
        DictionaryError: it is damaged, or holds values that are not finite.
    """
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        types = {name: tensor.dtype for name, tensor in tensors.items()}
        look_at_file(file, tensor_places(file, DictionaryError), types, DictionaryError, look)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DictionaryError(f"{what} is damaged or cut short ({error}); copy it again") from error
    return tensors


def mapped_npz(file: Path, what: str) -> dict[str, Tensor]:
    """The arrays of an npz file, mapped; every value is looked at once.

    Args:
        file: the file.
        what: the file in the sentence of an error: "its params.npz".

    Raises:
        DictionaryError: it is damaged, packed, holds Python objects, or values that are not finite.
    """
    tensors, places = read_npz(file, DictionaryError, what)
    parts = {name: (place.start, place.stop) for name, place in places.items()}
    types = {name: place.kind for name, place in places.items()}
    sums = {name: place.begun for name, place in places.items()}

    def look_and_count(name: str, piece: Tensor) -> None:
        look(name, piece)
        sums[name] = places[name].checked(sums[name], piece)

    try:
        look_at_file(file, parts, types, DictionaryError, look_and_count)
    except OSError as error:
        raise DictionaryError(f"{what} can't be read ({error})") from error
    for name, place in places.items():
        if sums[name] != place.whole:
            raise DictionaryError(f"in {what} {name} is damaged: its checksum is another one; copy the file again")
    return tensors


def transposed(file: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights in a file of `torch.save` that holds those of linear layers, `[width, d_in]` and `[d_out, width]`.

    Args:
        file: the file.
        names: our name of each of the file's tensors.

    Returns:
        `W_enc` `[d_in, width]`, `b_enc`, `W_dec` `[width, d_out]`, `b_dec`, in float32.

    Raises:
        DictionaryError: it is damaged, holds something else than these tensors, or values that are not finite.
    """
    what = f"its {file.name}"
    content = read_torch(file, DictionaryError, what)
    if not isinstance(content, Mapping) or not all(isinstance(one, Tensor) for one in content.values()):
        raise DictionaryError(f"{what} is no table of tensors by name")
    tensors = taken({str(name): tensor.detach() for name, tensor in content.items()}, names, SHAPES)
    check_finite(tensors)
    return tensors | {"W_enc": tensors["W_enc"].T, "W_dec": tensors["W_dec"].T.contiguous()}


def taken(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], ndims: Mapping[str, int], packed: Collection[str] = ()
) -> dict[str, Tensor]:
    """Tensors under our names, in float32.

    Args:
        tensors: of a file.
        names: our name of each of the file's; others in the file are refused.
        ndims: number of dimensions of each of ours.
        packed: those of ours that stay in 16 bits where the file has them so.

    Raises:
        DictionaryError: one is missing, unknown, or of another number of dimensions.
    """
    for name in sorted(names.keys() ^ tensors.keys()):
        raise DictionaryError(f"its weights {'lack' if name in names else 'have an unknown'} {name}")
    found = {}
    for name, ours in names.items():
        tensor = tensors[name]
        if not tensor.is_floating_point():
            raise DictionaryError(f"its {name} holds {tensor.dtype}, not floating-point numbers")
        if tensor.ndim != ndims[ours]:
            raise DictionaryError(f"{name} has the shape {tuple(tensor.shape)}, and not {ndims[ours]} dimensions")
        stays = tensor.dtype == torch.float32 or (ours in packed and tensor.dtype in HALVES)
        found[ours] = tensor if stays else tensor.float()
    return found


def built(
    kind: str, tensors: Mapping[str, Tensor], *, reads: str, writes: str = "", model: str = "", **settings: Any
) -> Dictionary:
    """A dictionary of one of our kinds from foreign weights.

    Args:
        kind: its word.
        tensors: `W_enc` `[d_in, width]`, `b_enc`, `W_dec` `[width, d_out]`, `b_dec` and what else the kind has.
        reads: hook point.
        writes: hook point; empty for `reads`.
        model: name of the model that it was made for; empty where no file states it.
        settings: as in SAELens's `cfg.json`; those that decide must be there.

    Raises:
        DictionaryError: the shapes do not fit together.
    """
    tensors = {**tensors, "W_dec": tensors["W_dec"].contiguous()}  # its rows are read one at a time
    (d_in, width), d_out = tensors["W_enc"].shape, tensors["W_dec"].shape[-1]
    config: dict[str, Any] = {"d_in": d_in, "d_sae": width, "d_out": d_out, "apply_b_dec_to_input": False} | settings
    dictionary = Dictionary.kind_called(kind).from_config(config, tensors)
    if dictionary.d_out != d_out:
        raise DictionaryError(f"its decoder writes {d_out:,} values and reads {d_in:,}, which is a transcoder's")
    hold_finite(dictionary, tensors)
    dictionary.reads, dictionary.writes = reads, writes or reads
    if model:
        dictionary.provenance["model_name"] = model
    return dictionary


def check_beside(file: Path) -> None:
    """Refuse a file beside the one that is opened that is a link out of its folder, or no file; nothing there passes.

    A folder that is opened has been looked through for links; a single file stands among files of strangers.
    """
    if os.path.lexists(file) and (leads_out(file, file.parent) or not file.is_file()):
        raise DictionaryError(f"its {file.name} is a link out of its folder or no file; put a copy in its place")


def in_path(path: Path, pattern: str) -> Sequence[str] | None:
    """The groups of the last part of a path that holds a pattern; None where none does.

    The name of a repository stands in the path of its copy, and in that of the hub's cache
    (`models--OWNER--NAME/snapshots/…`).
    """
    for part in reversed(path.absolute().parts):
        if found := re.search(pattern, part):
            return found.groups()
    return None

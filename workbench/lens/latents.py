"""Latents in the sum of a logit: what dictionaries explain of a part of the model, latent by latent.

A dictionary stands for one part: the attention or the MLP of a layer, or the residual stream at one place with all that
was written into it before. What stands there is the sum of its active latents' directions, each times its value, of its
bias, and of an error; each goes through what lies between that place and the stream.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.core.type_words import shown
from workbench.dictionaries.normalising import scale_of
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import flattened, gather, sites
from workbench.lens.errors import LensError
from workbench.lens.logit_sum import Reader, Share, Stream, added, part_shares
from workbench.model.hookpoints import HookPoint
from workbench.model.language_model import LanguageModel

STREAM = {"hook_resid_pre": 0, "hook_resid_mid": 1, "hook_resid_post": 2}
"""Places of the stream in a block, and how many sublayers of it lie in front."""
TITLES = {"attention": "attention", "mlp": "MLP", "stream": "the stream at layer"}
ROWS = 4096
"""Active latents of a dictionary on one token, at most."""


@dataclass(frozen=True)
class Explained:
    """What a dictionary explains at one of the places where it writes."""

    part: str
    """ "attention", "mlp" or "stream"."""
    layer: int
    shares: list[Share]
    """Latents, bias and error."""
    total: float
    """Of what stands at the place, without what lies behind it."""
    whole: float | None = None
    """Of what arrives in the stream from there, biases included; None for the stream itself."""
    sublayers: int = 0
    """How many sublayers of the layer lie in front, for the stream."""
    who: str = ""

    def contains(self, part: str, layer: int) -> bool:
        """Whether this is the stream, and the attention, the MLP or what is "behind" a layer was written before."""
        if self.part != "stream":
            return False
        needed = {"attention": 1, "mlp": 2, "behind": 3}[part]
        return layer < self.layer or (layer == self.layer and needed <= self.sublayers)

    def rest(self, value: float, reader: Reader) -> Share:
        """What the part adds beside the dictionary's shares: biases that lie behind the place.

        Args:
            value: the share of the whole part.
            reader: of the target.

        Raises:
            LensError: what stands at the place is not what the part adds.
        """
        title = f"{TITLES[self.part]} {self.layer}"
        assert self.whole is not None
        if not abs(value - self.whole) <= reader.exact * reader.largest:
            raise LensError(
                f"{self.who} does not stand where the whole of what {title} adds passes, so it does not explain that."
            )
        return Share(f"{title}, rest", "rest", self.layer, value - self.total)


def points_of(model: LanguageModel, dictionary: Dictionary) -> list[str]:
    """The hook points that the shares of a dictionary are read from.

    Raises:
        LensError: features of the model itself.
        DictionaryError: a dictionary that does not fit the model.
    """
    if dictionary.of_model:
        raise LensError(f'{dictionary.name} belongs to the model; its neurons are shown by detail="neurons".')
    at = sites(dictionary, model)
    return [point.name for point in (*at.reads, *at.writes)]


def explain(stream: Stream, reader: Reader, dictionaries: Sequence[Dictionary]) -> list[Explained]:
    """What each dictionary explains, place by place.

    Raises:
        LensError: a dictionary at a place that is no part of the sum, two of the same part, or two of one name.
    """
    owners: dict[str, Dictionary] = {}
    for one in dictionaries:
        if owners.setdefault(one.name, one) is not one:
            raise LensError(
                f"Two dictionaries are called {shown(one.name)}, so that their latents can't be told apart; give one "
                "of them another name."
            )
    found = [one for dictionary in dictionaries for one in _explained(stream, reader, dictionary)]
    seen: dict[tuple[str, int], Explained] = {}
    streams = [one for one in found if one.part == "stream"]
    for one in found:
        other = seen.setdefault((one.part, one.layer), one)
        if other is not one:
            raise LensError(f"{other.who} and {one.who} explain the same part, {TITLES[one.part]} {one.layer}.")
        inside = next((whole for whole in streams if whole is not one and _is_inside(one, whole)), None)
        if inside is not None:
            raise LensError(f"What {one.who} explains is contained in the stream that {inside.who} explains; give one.")
    return found


def _is_inside(one: Explained, whole: Explained) -> bool:
    if one.part == "stream":
        return (one.layer, one.sublayers) <= (whole.layer, whole.sublayers)
    return whole.contains(one.part, one.layer)


@dataclass(frozen=True, eq=False)
class _Pieces:
    """A dictionary on one activation."""

    owner: Dictionary
    latents: list[int]
    """The active ones."""
    written: Tensor
    """What each of them writes, `[n, d_out]`."""
    reconstruction: Tensor
    """`[d_out]`."""

    @classmethod
    def of(cls, dictionary: Dictionary, x: Tensor) -> _Pieces:
        """The pieces for an activation `[1, d_in]` in float32; raises `LensError` if too many latents are active."""
        with torch.no_grad():
            codes = dictionary.encode(x)
            reconstruction = dictionary.reconstruct(x)[0].float()
            values: dict[int, float] = {}
            for index, value in zip(codes.indices[0].tolist(), codes.values[0].tolist(), strict=True):
                values[index] = values.get(index, 0.0) + value
            latents = [index for index, value in values.items() if value]
            if len(latents) > ROWS:
                raise LensError(
                    f"{len(latents):,} latents of {dictionary.name} are active on this token, and at most {ROWS:,} are "
                    "taken apart; give a sparser dictionary."
                )
            written = reconstruction.new_zeros(len(latents), dictionary.d_out)
            for row, index in enumerate(latents):
                written[row] = values[index] * dictionary.direction(index).float()
            if dictionary.rescales:
                written *= scale_of(x, dictionary.normalises)
        return cls(dictionary, latents, written, reconstruction)

    def at(self, number: int, x: Tensor) -> Tensor:
        """What each latent, the bias (with a linear path past the latents) and the error add where it writes.

        Args:
            number: of the place.
            x: what stands there, `[width]`.

        Returns:
            `[n + 2, width]`, which sum to `x`.
        """
        own = slice(number * len(x), (number + 1) * len(x))
        written, reconstruction = self.written[:, own], self.reconstruction[own]
        return torch.cat([written, (reconstruction - written.sum(0))[None], (x - reconstruction)[None]])


def _explained(stream: Stream, reader: Reader, dictionary: Dictionary) -> list[Explained]:
    """What one dictionary explains, at each of the places where it writes."""
    at = sites(dictionary, stream.model)
    read = {point.name: flattened(stream.at(point.name), point)[None].float() for point in at.reads}
    pieces = _Pieces.of(dictionary, gather(read, list(read)))
    return [_at(stream, reader, pieces, number, point) for number, point in enumerate(at.writes)]


def _at(stream: Stream, reader: Reader, pieces: _Pieces, number: int, point: HookPoint) -> Explained:
    """What a dictionary explains at one of the places where it writes."""
    part, layer, sublayers = _part_of(point)
    x = flattened(stream.at(point.name), point).float()
    parts, whole = pieces.at(number, x), None
    if part == "stream":
        values = [reader.of(one) for one in parts]
    else:
        values = part_shares(stream, reader, point.name, parts)
        whole = reader.of(added(stream, point.name))
    owner, title = pieces.owner, f"{TITLES[part]} {layer}"
    shares = [
        Share(str(owner.feature(index)), "latent", layer, value)
        for index, value in zip(pieces.latents, values, strict=False)
    ]
    shares.append(Share(f"{owner.name}, bias at {title}", "bias", layer, values[-2]))
    shares.append(Share(f"{owner.name}, error at {title}", "error", layer, values[-1]))
    return Explained(part, layer, shares, sum(values), whole, sublayers, owner.name)


def _part_of(point: HookPoint) -> tuple[str, int, int]:
    """The part of the model that stands at a hook point, its layer, and the sublayers in front of a stream."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", point.name)
    if match is None:
        raise LensError(f"What stands at {point.name} is no part of a layer, so no dictionary there explains a logit.")
    layer, word = int(match[1]), match[2]
    if word in STREAM:
        return "stream", layer, STREAM[word]
    return ("attention" if "attn" in word else "mlp"), layer, 0


def merged(shares: Sequence[Share], top: int) -> list[Share]:
    """The shares with one for each latent, which may write into several layers, and the `top` largest of them alone.

    The others of a dictionary are one "rest".
    """
    sums: dict[str, float] = {}
    for one in shares:
        if one.kind == "latent":
            sums[one.label] = sums.get(one.label, 0.0) + one.value
    kept = set(sorted(sums, key=lambda label: -abs(sums[label]))[:top])
    found: list[Share] = []
    left: dict[str, float] = {}
    for one in shares:
        name = one.label.rpartition(":")[0]
        if one.kind != "latent":
            found.append(one)
        elif one.label in kept:
            found.append(replace(one, value=sums[one.label]))
            kept.discard(one.label)
            sums[one.label] = 0.0
        elif sums[one.label]:
            left[name] = left.get(name, 0.0) + sums[one.label]
            sums[one.label] = 0.0
    return _with_rests(found, left)


def _with_rests(shares: Sequence[Share], left: Mapping[str, float]) -> list[Share]:
    """The shares, and in front of each dictionary's bias what its latents add that are not shown."""
    found: list[Share] = []
    waiting = dict(left)
    for one in shares:
        name = next((name for name in waiting if one.kind == "bias" and one.label.startswith(f"{name}, bias")), None)
        if name is not None:
            found.append(Share(f"{name}, other latents", "rest", one.layer, waiting.pop(name)))
        found.append(one)
    return found

"""The stream behind layers and the final layer's prediction, of the tokens of a batch that count, in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from workbench.corpus import TokenBatch
from workbench.lens.readout import NORM, Readout
from workbench.model.edits import BoundEdit, Edit
from workbench.model.language_model import LanguageModel

END = "ln_final.hook_in"
VALUES = 1 << 25
"""Values of streams that one run keeps, at most, where windows can be run apart: 128 MiB in float32."""


@dataclass(frozen=True)
class Streams:
    """What one run leaves."""

    layers: list[Tensor]
    """The stream behind each layer, `[tokens, d_model]` each, in the model's type."""
    final: Tensor
    """The last layer's stream behind the final norm, `[tokens, d_model]`, in float32."""


def hook_point_behind(layer: int) -> str:
    """The hook point of the stream behind a layer; -1 is the embedding."""
    return f"blocks.{layer}.hook_resid_post" if layer >= 0 else "blocks.0.hook_resid_pre"


def read_streams(model: LanguageModel, readout: Readout, batch: TokenBatch, layers: Sequence[int]) -> Streams:
    """The streams at the tokens of a batch that count, under the interventions in force here.

    Raises:
        LensError: the model's logits are not those of its final norm's output, or this is not that of the stream.
    """
    names = [hook_point_behind(layer) for layer in layers]
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        edits = [*model.bind([]), *watching(model, [*names, END, NORM], seen)]
        logits = model.run(batch.tokens, edits, last=1)
        whole = seen[NORM].float().to(readout.head.device)  # [batch, pos, d_model]
        full = batch.content[:, -1].to(whole.device)
        if bool(full.any()):
            readout.check(whole[full, -1], logits[:, -1][full.to(logits.device)])
        kept = {name: one[batch.content.to(one.device)].to(readout.head.device) for name, one in seen.items()}
        readout.check_norm(kept[END], kept[NORM].float())
    return Streams([kept[name] for name in names], kept[NORM].float())


def in_parts(model: LanguageModel, batch: TokenBatch, layers: int) -> list[TokenBatch]:
    """The rows of a batch in parts whose streams behind so many layers hold at most `VALUES` values."""
    values = batch.tokens.shape[1] * (layers + 2) * model.network.d_model
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device).split(max(1, VALUES // values))
    return [TokenBatch(**{one.name: getattr(batch, one.name)[part] for one in fields(TokenBatch)}) for part in rows]


def watching(model: LanguageModel, names: Sequence[str], seen: dict[str, Tensor]) -> list[BoundEdit]:
    """Edits behind all others that keep what stands at hook points and change nothing."""

    def keep(name: str, x: Tensor) -> Tensor:
        seen[name] = x.detach()
        return x

    edits = [Edit(name, lambda x, name=name: keep(name, x), source="read_lens", reads_only=True) for name in names]
    return model.network.prepare(edits)

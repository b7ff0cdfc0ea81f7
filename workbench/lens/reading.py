"""`read_lens`: what each layer predicts at each position of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, Raises, checked
from workbench.core.progress import Progress
from workbench.core.type_words import shown
from workbench.lens.errors import LensError
from workbench.lens.grid import LensGrid
from workbench.lens.places import check_reached, places_of
from workbench.lens.readout import NORM, Readout, Reduced, Reducer
from workbench.lens.tokens import one_row, texts_of
from workbench.lens.transports import Lens
from workbench.model.edits import BoundEdit, Edit, EditError, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt

END = "ln_final.hook_in"


@checked(LensError)
def read_lens(
    model: LanguageModel,
    text: Prompt,
    kind: str | Lens = "logit",
    *,
    at: str = "resid_post",
    layers: Sequence[Natural] | None = None,
    top_k: Positive = 10,
    interventions: Annotated[Sequence[Intervention], Raises(EditError)] = (),
    progress: Progress | None = None,
) -> LensGrid:
    """The predictions of each layer at each position of a text, through the final norm and the LM head.

    Args:
        model: the model.
        text: a text, a `chat_prompt`, or token ids `[pos]`.
        kind: "logit" (the stream as it is), or a fitted lens.
        at: the place in a layer that is read: "resid_pre", "resid_mid" or "resid_post" for the stream; "attn_out",
            "mlp_out" or "heads" for what is added to it there, which is read alone.
        layers: only these; None for all.
        top_k: tokens that are kept of each cell.
        interventions: act in the run that is read, beside those in force here.
        progress: told the share that is done.

    Raises:
        LensError: a model without a final norm or LM head of its own, an unknown kind or place, or a layer that the
            model lacks.
        PromptError: an empty text, or one longer than the context.
        EditError: an intervention that can't act in this run.

    Source: nostalgebraist (2020), "interpreting GPT: the logit lens".
    """
    lens = _opened(kind)
    readout = Readout(model)
    tokens = one_row(model, text, "A lens reads")
    check_reached(model, model.bind(interventions))
    places = places_of(model, at, layers)
    seen: dict[str, Tensor] = {}
    names = [*dict.fromkeys(place.hook_point for place in places), END, NORM]
    with torch.no_grad():
        logits = model.run(tokens, [*model.bind(interventions), *_reading(model, names, seen)], last=1)
    final = seen[NORM][0].float().to(readout.head.device)  # [pos, d_model]
    readout.check(final[-1:], logits[0])
    if not interventions:
        _check_norm(readout, seen[END][0], final)
    with torch.no_grad():
        rows = [place.stream(seen[place.hook_point][0], lens).to(readout.head.device) for place in places]
    streams = torch.stack(rows)  # [rows, pos, d_model]
    reduced = _reduce(readout, streams, final, top_k, progress)
    numbers = (reduced.ids, reduced.log_probabilities.exp(), reduced.entropy, reduced.kl)
    return LensGrid(model, texts_of(model, tokens[0]), tokens[0], places, *numbers, streams)


def _opened(kind: str | Lens) -> Lens:
    if isinstance(kind, Lens):
        return kind
    made = Lens.kind_called(kind)
    if made.fitted:
        raise LensError(f"A {kind} lens is fitted to a model; open one and pass it in place of {shown(kind)}.")
    return made()


def _reading(model: LanguageModel, names: Sequence[str], seen: dict[str, Tensor]) -> list[BoundEdit]:
    """Edits behind all others that keep what stands at hook points and change nothing."""

    def keep(name: str, x: Tensor) -> Tensor:
        seen[name] = x.detach()
        return x

    edits = [Edit(name, lambda x, name=name: keep(name, x), source="read_lens", reads_only=True) for name in names]
    return model.network.prepare(edits)


def _check_norm(readout: Readout, stream: Tensor, final: Tensor) -> None:
    """Raise `LensError` unless the norm's output is that of the stream in front of it, `[pos, d_model]` both."""
    if not torch.allclose(readout.normed(stream), final, rtol=1e-3, atol=1e-3 * float(final.abs().max())):
        raise LensError(
            f"{readout.model.name} has no lens: what its final norm returns depends on more than its input."
        )


def _reduce(readout: Readout, streams: Tensor, final: Tensor, top_k: int, progress: Progress | None) -> Reduced:
    """Every cell's numbers `[rows, pos, ...]`.

    Args:
        readout: of the model.
        streams: `[rows, pos, d_model]`.
        final: behind the final norm, `[pos, d_model]`.
        top_k: tokens kept.
        progress: told the share that is done.
    """
    reducer = Reducer(readout, top_k)
    blocks: list[Reduced] = []
    with torch.no_grad():
        for at in readout.blocks(len(final)):
            if progress:
                progress(at.start / len(final), "Reading the layers")
            reducer.begin(final[at])
            blocks.append(_stacked([reducer.reduce(readout.normed(row[at])) for row in streams], torch.stack))
    return _stacked(blocks, lambda parts: torch.cat(parts, 1))


def _stacked(parts: Sequence[Reduced], join: object) -> Reduced:
    fields = ("ids", "log_probabilities", "entropy", "kl")
    return Reduced(*(join([getattr(part, name) for part in parts]) for name in fields))  # type: ignore[operator]

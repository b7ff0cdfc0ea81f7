"""`read_lens`, `read_lenses`: what each layer predicts at each position of a text, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated

import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, Raises, checked
from workbench.core.progress import Progress, Tell
from workbench.lens.errors import LensError
from workbench.lens.files import opened
from workbench.lens.grid import LensGrid
from workbench.lens.places import Place, check_reached, places_of
from workbench.lens.readout import NORM, Readout, Reduced, Reducer
from workbench.lens.streams import END, watching
from workbench.lens.tokens import one_row
from workbench.lens.transports import Lens
from workbench.model.edits import EditError, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt, pad_left

TEXTS = 16
"""Texts of one run."""


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
        kind: "logit" (the stream as it is), "tuned" or "jacobian" (the lens of this kind that is kept for this very
            model), or a lens that was fitted to it.
        at: the place in a layer that is read: "resid_pre", "resid_mid" or "resid_post" for the stream; "attn_out",
            "mlp_out" or "heads" for what is added to it there, which is read alone. A fitted lens does not read
            "resid_mid", which stands behind no layer.
        layers: only these; None for all.
        top_k: tokens that are kept of each cell.
        interventions: act in the run that is read, beside those in force here.
        progress: told the share that is done; None: a bar; False: nothing.

    Raises:
        LensError: a model without a final norm or LM head of its own, an unknown kind or place, a layer that the
            model lacks or that a fitted lens does not read, a lens of another model, or none that is kept for this one.
        PromptError: an empty text, or one longer than the context.
        EditError: an intervention that can't act in this run.

    Source: nostalgebraist (2020), "interpreting GPT: the logit lens".
    """
    return read_lenses(
        model, [text], kind, at=at, layers=layers, top_k=top_k, interventions=interventions, progress=progress
    )[0]


@checked(LensError)
def read_lenses(
    model: LanguageModel,
    texts: Sequence[Prompt],
    kind: str | Lens = "logit",
    *,
    at: str = "resid_post",
    layers: Sequence[Natural] | None = None,
    top_k: Positive = 10,
    interventions: Annotated[Sequence[Intervention], Raises(EditError)] = (),
    progress: Progress | None = None,
) -> list[LensGrid]:
    """The predictions of each layer at each position of several texts, which run together.

    Args:
        model: the model.
        texts: texts, `chat_prompt`s, or token ids `[pos]`, of any lengths.
        kind, at, layers, top_k, interventions, progress: as in `read_lens`.

    Returns:
        A grid for each text, as `read_lens` returns it for the text alone.

    Raises:
        LensError: no text, and as in `read_lens`.
        PromptError: an empty text, or one longer than the context.
        EditError: an intervention that can't act in these runs.
    """
    lens = opened(model, kind)
    if lens.fitted and at == "resid_mid":
        raise LensError(f"A {lens.kind} lens reads the stream behind layers, not at resid_mid; choose resid_post.")
    if not len(texts):
        raise LensError("There is no text; give at least one.")
    readout = Readout(model)
    rows = [one_row(model, text, "A lens reads")[0] for text in texts]
    check_reached(model, model.bind(interventions))
    places = places_of(model, at, layers)
    grids: list[LensGrid] = []
    for start in range(0, len(rows), TEXTS):
        told = _part(progress, start, len(rows)) if progress else None
        how = {"lens": lens, "interventions": interventions, "top_k": top_k, "progress": told}
        grids += _grids(readout, rows[start : start + TEXTS], places, **how)
    return grids


def _part(progress: Tell, start: int, texts: int) -> Tell:
    """Progress of a run that begins at text `start`, as a share of all texts."""
    share = min(TEXTS, texts - start)
    return lambda done, *words: progress((start + share * done) / texts, *words)


def _grids(
    readout: Readout,
    rows: Sequence[Tensor],
    places: list[Place],
    *,
    lens: Lens,
    interventions: Sequence[Intervention],
    top_k: int,
    progress: Progress | None,
) -> list[LensGrid]:
    """A grid for each row of token ids `[pos]`, from one run."""
    model, seen = readout.model, dict[str, Tensor]()
    names = [*dict.fromkeys(place.hook_point for place in places), END, NORM]
    tokens, mask = pad_left([row.tolist() for row in rows], model.device)
    with torch.no_grad():
        edits = [*model.bind(interventions), *watching(model, names, seen)]
        logits = model.run(tokens, edits, mask=mask, last=1)
        lengths = [len(row) for row in rows]

        def texts(name: str) -> Tensor:  # [all pos, ...]; an edit of a run with padding gets no padding
            return seen[name].flatten(0, 1) if mask is None else seen[name]

        final = texts(NORM).float().to(readout.head.device)  # [all pos, d_model]
        last = torch.tensor(lengths).cumsum(0) - 1
        readout.check(final[last.to(final.device)], logits[:, -1])
        if not interventions:
            readout.check_norm(texts(END), final)
        streams = torch.stack([place.stream(texts(place.hook_point), lens).to(final.device) for place in places])
    reduced = _reduce(readout, streams, final, top_k, progress)
    parts = (reduced.ids, reduced.log_probabilities.exp(), reduced.entropy, reduced.kl, streams)
    of_texts = zip(rows, *(part.split(lengths, 1) for part in parts), strict=True)
    return [LensGrid(model, model.token_labels(row), row, places, *own) for row, *own in of_texts]


def _reduce(readout: Readout, streams: Tensor, final: Tensor, top_k: int, progress: Progress | None) -> Reduced:
    """Every cell's numbers `[rows, pos, ...]`.

    Args:
        readout: of the model.
        streams: `[rows, pos, d_model]`.
        final: behind the final norm, `[pos, d_model]`.
        top_k: tokens kept.
        progress: told the share that is done; None: a bar; False: nothing.
    """
    reducer = Reducer(readout, top_k)
    blocks: list[Reduced] = []
    with torch.no_grad():
        for at in readout.blocks(len(final)):
            if progress:
                progress(at.start / len(final), "Reading the layers")
            reducer.begin(final[at])
            blocks.append(reducer.reduce(readout.normed(streams[:, at])))
    return Reduced(*(torch.cat([getattr(block, one.name) for block in blocks], 1) for one in fields(Reduced)))

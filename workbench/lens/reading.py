"""`read_lens`: what each layer predicts at each position of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated

import torch
from torch import Tensor

from workbench.core.checks import Natural, Positive, Raises, checked
from workbench.core.progress import Progress
from workbench.lens.errors import LensError
from workbench.lens.files import opened
from workbench.lens.grid import LensGrid
from workbench.lens.places import check_reached, places_of
from workbench.lens.readout import NORM, Readout, Reduced, Reducer
from workbench.lens.streams import END, watching
from workbench.lens.tokens import one_row
from workbench.lens.transports import Lens
from workbench.model.edits import EditError, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt


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
    lens = opened(model, kind)
    if lens.fitted and at == "resid_mid":
        raise LensError(f"A {lens.kind} lens reads the stream behind layers, not at resid_mid; choose resid_post.")
    readout = Readout(model)
    tokens = one_row(model, text, "A lens reads")
    check_reached(model, model.bind(interventions))
    places = places_of(model, at, layers)
    seen: dict[str, Tensor] = {}
    names = [*dict.fromkeys(place.hook_point for place in places), END, NORM]
    with torch.no_grad():
        logits = model.run(tokens, [*model.bind(interventions), *watching(model, names, seen)], last=1)
    final = seen[NORM][0].float().to(readout.head.device)  # [pos, d_model]
    readout.check(final[-1:], logits[0])
    if not interventions:
        readout.check_norm(seen[END][0], final)
    with torch.no_grad():
        rows = [place.stream(seen[place.hook_point][0], lens).to(readout.head.device) for place in places]
    streams = torch.stack(rows)  # [rows, pos, d_model]
    reduced = _reduce(readout, streams, final, top_k, progress)
    numbers = (reduced.ids, reduced.log_probabilities.exp(), reduced.entropy, reduced.kl)
    return LensGrid(model, model.token_labels(tokens[0]), tokens[0], places, *numbers, streams)


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

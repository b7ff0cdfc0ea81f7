"""The layer where the answer appears, and the token of the text that it depends on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.vocabulary import special_tokens
from workbench.findings.results import Ablation, Finding
from workbench.findings.subject import Subject, Variant
from workbench.interventions.kinds import RemoveLayer
from workbench.lens.readout import Readout
from workbench.lens.tokens import texts_of
from workbench.model.edits import Edit
from workbench.model.grad_mode import taking_gradients
from workbench.model.weights import ModelError

DRAWS = (1, 2)
"""Random tokens that take a token's place, one after the other; a token is chosen by draw 0, apart from these."""
TRIED = 3
"""Tokens among which it is chosen: those on which the score depends most by its slope."""
LONG = 256
"""Tokens of a text, at most, whose slopes are measured where gradients can't be taken."""
FIRST = "blocks.0.hook_resid_pre"
NUDGE = 0.003
"""The share of a token's distance from the mean by which it is moved for that."""


def answer_layer(subject: Subject, notes: list[str]) -> list[Finding]:
    """The layer from which on the answer stands, by the logit lens at the last position."""
    model = subject.model
    layers = range(model.network.n_layers)
    try:
        logits = _by_layer(subject)  # [layers, vocab]
        layer, words = _settled(subject, logits)
        chance = subject.chance("layer", layer)
        others = [one for one in layers if one != layer]
        drawn = chance.sample(others, min(subject.controls, len(others)))
        test = subject.tested(
            RemoveLayer(layer),
            [RemoveLayer(one) for one in drawn],
            kind="other layers",
            code=f"wb.interventions.RemoveLayer({layer})",
        )
    except (WorkbenchError, ModelError) as error:
        notes.append(f"The layer where the answer appears is not looked at: {error}")
        return []
    call = f"wb.read_lens(model, {subject.text_code}).rank({subject.targets[0]})[:, -1]"
    if len(subject.targets) == 2:
        call = f"[wb.read_lens(model, {subject.text_code}).log_probability(one)[:, -1] for one in {subject.targets}]"
    return [Finding("layer", f"{words} {test.sentence}", float(layer), call, test)]


def _by_layer(subject: Subject) -> Tensor:
    """The logits that the logit lens reads of each layer at the last position, `[layers, vocab]`."""
    model, readout = subject.model, Readout(subject.model)
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.network.n_layers)]
    with torch.no_grad():
        seen = model.capture(subject.tokens, names)
        streams = [readout.normed(seen[name][0, -1:]) for name in names]
        logits = torch.cat([readout.logits(one) for one in streams])
        final = readout.logits(streams[-1])
    readout.check(streams[-1], subject.logits[None])
    return torch.cat([logits[:-1], final])


def _settled(subject: Subject, logits: Tensor) -> tuple[int, str]:
    """The first layer from which on the answer stands as it does at the end, and a sentence."""
    first, *other = subject.targets
    if other:
        sign = 1 if float(logits[-1, first]) >= float(logits[-1, other[0]]) else -1
        stands = (logits[:, first] - logits[:, other[0]]) * sign > 0
        what = f"the logit difference {subject.name} has the sign that it has at the end"
    else:
        ranks = (logits > logits[:, first : first + 1]).sum(1)
        stands = ranks <= ranks[-1]
        rank = int(ranks[-1])
        above = f"at most {rank} tokens are likelier than {subject.name}"
        what = f"{subject.name} is the likeliest token" if not rank else above
    missed = (~stands[:-1]).nonzero()
    layer = int(missed[-1]) + 1 if len(missed) else 0
    return layer, f"From layer {layer} on (of {len(logits)}) {what}, by the logit lens."


def needed_token(subject: Subject, notes: list[str]) -> list[Finding]:
    """The token of the text on which the score depends most, beside the last one, on which every prediction does."""
    inside = _inside(subject)
    places = [place for place in inside if place < subject.tokens.shape[1] - 1] or inside
    if not places:
        notes.append("The text has no token that could be taken out.")
        return []
    try:
        slopes = _slopes(subject)
    except (WorkbenchError, ModelError) as error:
        notes.append(f"The token that the answer depends on is not looked at: {error}")
        return []
    tried = sorted(places, key=lambda place: -slopes[place])[:TRIED]
    first = _replaced(subject, tried, [0])
    place = tried[max(range(len(tried)), key=lambda number: first[number])]
    others = [one for one in places if one != place]
    drawn = subject.chance("token").sample(others, min(subject.controls, len(others)))
    effect, *random_ones = _replaced(subject, [place, *drawn], DRAWS)
    text = texts_of(subject.model, subject.tokens[0, place : place + 1])[0]
    row = _row(subject, place, DRAWS[0]).tolist()
    call = f"model({row})[0, -1].log_softmax(-1)[{subject.targets}]"
    test = Ablation(effect, random_ones, "other tokens of the text", subject.score, call)
    sentence = (
        f"Beside the last token the prediction depends on “{text}” (position {place}); {len(DRAWS)} random tokens take "
        "its place, one after the other."
    )
    return [Finding("token", f"{sentence} {test.sentence}", effect, call, test)]


def _inside(subject: Subject) -> list[int]:
    """The positions of the text's own tokens, without special ones."""
    tokenizer = subject.model.tokenizer
    special = frozenset() if tokenizer is None else special_tokens(tokenizer)
    return [place for place, one in enumerate(subject.tokens[0].tolist()) if one not in special]


def _slopes(subject: Subject) -> list[float]:
    """To first order, how much the score depends on what each token brings into the first layer, beside the mean.

    Raises:
        ModelError: no gradients can be taken, and the text is too long to measure them one by one.
    """
    try:
        return _gradients(subject)
    except ModelError:
        if subject.tokens.shape[1] > LONG:
            raise
        return _measured(subject)


def _gradients(subject: Subject) -> list[float]:
    model = subject.model
    seen: list[Tensor] = []
    with taking_gradients():
        leaf = torch.zeros(1, subject.tokens.shape[1], model.network.d_model, device=model.device, requires_grad=True)

        def add(x: Tensor) -> Tensor:
            seen.append(x.detach())
            return x + leaf.to(x.device, x.dtype)

        logits = model.run(subject.tokens, [*model.bind(()), Edit(FIRST, add)], last=1)[0, -1].float()
        one, *other = subject.targets
        score = logits[one] - logits[other[0]] if other else logits.log_softmax(-1)[one]
        (gradient,) = torch.autograd.grad(score, [leaf])
    stream = seen[0][0].float().to(gradient.device)
    return ((stream - stream.mean(0)) * gradient[0]).sum(-1).abs().tolist()


def _measured(subject: Subject) -> list[float]:
    """The same from a small step at each token, one after the other."""

    def nudged(place: int) -> Edit:
        def change(x: Tensor) -> Tensor:
            moved = x.clone()
            moved[:, place] += NUDGE * (x[:, place] - x.mean(1))
            return moved

        return Edit(FIRST, change)

    edits = [Variant(edits=[nudged(place)]) for place in range(subject.tokens.shape[1])]
    return [abs(loss) / NUDGE for loss in subject.losses(edits)]


def _row(subject: Subject, place: int, draw: int) -> Tensor:
    """The text's tokens with a random one at a position, the same one for all positions: `[pos]`."""
    model = subject.model
    special = frozenset() if model.tokenizer is None else special_tokens(model.tokenizer)
    own = int(subject.tokens[0, place])
    chance = subject.chance("replacement", draw)
    row = subject.tokens[0].clone()
    while (token := chance.randrange(model.network.vocab_size)) in special or token == own:
        if model.network.vocab_size <= len(special) + 1:
            break
    row[place] = token
    return row


def _replaced(subject: Subject, places: Sequence[int], draws: Sequence[int]) -> list[float]:
    """By how much the score falls with random tokens at each position, the mean over draws."""
    variants = [Variant(tokens=_row(subject, place, draw)) for place in places for draw in draws]
    losses = torch.tensor(subject.losses(variants), dtype=torch.float64)
    return losses.view(len(places), len(draws)).mean(1).tolist()

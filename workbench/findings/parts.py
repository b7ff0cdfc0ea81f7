"""Heads, neurons and latents that carry a prediction, by what they add to its logit."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.core.errors import WorkbenchError
from workbench.dictionaries.protocol import Dictionary
from workbench.findings.results import Finding
from workbench.findings.subject import Subject
from workbench.interventions.kinds import Ablate, RemoveHead
from workbench.lens.errors import LensError
from workbench.lens.logit_sum import Share
from workbench.lens.logits import LogitAttribution, attribute_logit
from workbench.model.weights import ModelError

MANY = 4096
"""Latents whose shares are asked for: all that are active."""


def carrying_parts(subject: Subject, top: int, notes: list[str]) -> list[Finding]:
    """The heads and the neurons with the largest shares of the logit, at most `top` of each."""
    attributed = _attributed(subject, notes)
    if attributed is None:
        return []
    found: list[Finding] = []
    for kind, make in (("head", _head), ("neuron", _neuron)):
        shares = [one for one in attributed.largest if one.kind == kind][:top]
        if not shares:
            notes.append(f"{subject.model.name} shows no {kind}s of its own, so none is looked at.")
        try:
            found += [make(subject, attributed, one) for one in shares]
        except (WorkbenchError, ModelError) as error:
            notes.append(f"No {kind} is looked at: {error}")
    return found


def _attributed(subject: Subject, notes: list[str]) -> LogitAttribution | None:
    """The logit as a sum, as fine as the model shows it; None where it is no sum."""
    for detail in ("neurons", "heads"):
        try:
            return attribute_logit(subject.model, subject.tokens[0], _target(subject), detail=detail, top=50)
        except LensError as error:
            reason = str(error)
    notes.append(f"No heads and neurons are looked at: {reason}")
    return None


def _target(subject: Subject) -> int | tuple[int, int]:
    one, *other = subject.targets
    return (one, other[0]) if other else one


def _adds(subject: Subject, who: str, share: Share, logit: float) -> str:
    what = "the logit of" if len(subject.targets) == 1 else "the logit difference"
    verb = "adds" if share.value >= 0 else "takes"
    preposition = "to" if share.value >= 0 else "from"
    return f"{who} {verb} {abs(share.value):.2f} {preposition} {what} {subject.name}, which is {logit:.2f}."


def _call(subject: Subject, detail: str, more: str = "") -> str:
    return (
        f'wb.lens.attribute_logit(model, {subject.text_code}, {subject.target_code}, detail="{detail}"{more}).largest'
    )


def _sign(share: Share) -> int:
    return 1 if share.value >= 0 else -1


def _head(subject: Subject, attributed: LogitAttribution, share: Share) -> Finding:
    layer, head = (int(one) for one in share.label.removeprefix("head ").split("."))
    heads = sum(one.kind == "head" and one.layer == layer for one in attributed.shares)
    others = [one for one in range(heads) if one != head]
    drawn = subject.chance("head", layer, head).sample(others, min(subject.controls, len(others)))
    test = subject.tested(
        RemoveHead(layer, head),
        [RemoveHead(layer, one) for one in drawn],
        kind=f"heads of layer {layer}",
        code=f"wb.interventions.RemoveHead({layer}, {head})",
        sign=_sign(share),
    )
    sentence = _adds(subject, f"Head {layer}.{head}", share, attributed.logit)
    return Finding("head", f"{sentence} {test.sentence}", share.value, _call(subject, "heads"), test)


def _neuron(subject: Subject, attributed: LogitAttribution, share: Share) -> Finding:
    name, _, index = share.label.rpartition(":")
    layer = int(name.split(".")[1])
    width = subject.model.network.neuron_hook_point(layer, "post").width
    chance = subject.chance("neuron", share.label)
    drawn = [one for one in chance.sample(range(width), min(width, subject.controls + 1)) if one != int(index)]
    test = subject.tested(
        Ablate(share.label),  # type: ignore[arg-type]
        [Ablate(f"{name}:{one}") for one in drawn[: subject.controls]],  # type: ignore[arg-type]
        kind=f"neurons of layer {layer}",
        code=f'wb.Ablate("{share.label}")',
        sign=_sign(share),
    )
    sentence = _adds(subject, f"The neuron {share.label}", share, attributed.logit)
    return Finding("neuron", f"{sentence} {test.sentence}", share.value, _call(subject, "neurons"), test)


def carrying_latents(subject: Subject, dictionaries: Sequence[Dictionary], top: int, notes: list[str]) -> list[Finding]:
    """The latents with the largest shares of the logit, at most `top` of each dictionary."""
    found: list[Finding] = []
    for dictionary in dictionaries:
        how = {"detail": "latents", "dictionaries": [dictionary], "top": MANY}
        try:
            attributed = attribute_logit(subject.model, subject.tokens[0], _target(subject), **how)
            latents = [one for one in attributed.largest if one.kind == "latent"]
            found += [_latent(subject, dictionary, attributed, one, latents) for one in latents[:top]]
        except (WorkbenchError, ModelError) as error:
            notes.append(f"No latent of {dictionary.name} is looked at: {error}")
    return found


def _latent(
    subject: Subject,
    dictionary: Dictionary,
    attributed: LogitAttribution,
    share: Share,
    latents: Sequence[Share],
) -> Finding:
    index = int(share.label.rpartition(":")[2])
    others = sorted(int(one.label.rpartition(":")[2]) for one in latents if one is not share)
    drawn = subject.chance("latent", share.label).sample(others, min(subject.controls, len(others)))
    test = subject.tested(
        Ablate(dictionary.feature(index)),
        [Ablate(dictionary.feature(one)) for one in drawn],
        kind=f"latents of {dictionary.name} that are active there",
        code=f"wb.Ablate(dictionary.feature({index}))",
        sign=_sign(share),
    )
    sentence = _adds(subject, f"The latent {share.label}", share, attributed.logit)
    call = _call(subject, "latents", ", dictionaries=[dictionary]")
    return Finding("latent", f"{sentence} {test.sentence}", share.value, call, test)

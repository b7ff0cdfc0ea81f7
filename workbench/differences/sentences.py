"""Findings in sentences, each with its number and the call that measures it."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.differences.results import (
    DecodingDifference,
    DictionaryDifference,
    Difference,
    EditDifference,
    Graft,
    LayerDifference,
    TextDifferences,
    UnitDifference,
    WeightDifferences,
)

LEAST_KL = 1e-6
"""A mean KL below so many nats is rounding."""
LEAST_DISTANCE = 1e-5
"""A relative distance of streams below this is rounding."""
LEAST_Z = 4.0
"""A latent fires more or less where its difference is so many standard errors."""
LEAST_SHARE = 0.01
"""An explained share that differs by less is not worth a sentence."""
CALL = "wb.differences.compare_models(a, b, corpus)"


def of_texts(texts: TextDifferences) -> list[Difference]:
    """How far the predictions are apart, and where most."""
    if texts.kl < LEAST_KL:
        return []
    low, high = texts.kl_interval
    one, other = texts.losses
    verb = "falls" if other < one else "rises"
    found = [
        Difference(
            "texts",
            f"Over {texts.predictions:,} tokens the predictions differ by {texts.kl:.3g} nats of KL(a ‖ b) a token "
            f"(95% {low:.3g} to {high:.3g}); the loss {verb} from {one:.3f} to {other:.3f}, and the likeliest token is "
            f"the same for {texts.same_top:.1%}.",
            texts.kl,
            f"{CALL}.texts",
        )
    ]
    for passage in texts.passages[:1]:
        a, b = passage.likeliest
        found.append(
            Difference(
                "texts",
                f"They part most behind {_short(passage.before)!r}, by {passage.kl:.3g} nats: a expects {a!r}, b "
                f"{b!r}, and {passage.token!r} stands there.",
                passage.kl,
                f"{CALL}.texts.passages[0]",
            )
        )
    return found


def of_stream(stream: Sequence[LayerDifference]) -> list[Difference]:
    """Where the streams begin to differ, and how far they end apart."""
    differs = [one for one in stream if one.distance > LEAST_DISTANCE]
    if not differs:
        return []
    first, most = differs[0], max(differs, key=lambda one: one.distance)
    return [
        Difference(
            "stream",
            f"The residual stream first differs behind layer {first.layer}, by {first.distance:.2g} of its norm, and "
            f"most behind layer {most.layer}, by {most.distance:.2g} (cosine {most.cosine:.4f}).",
            most.distance,
            f"{CALL}.stream",
        )
    ]


def of_grafts(grafts: Sequence[Graft], top: int) -> list[Difference]:
    """The parts of b that make most of the difference in a."""
    return [
        Difference(
            "graft",
            f"Where a computes with b's {one.part}, {one.closed:.0%} of the difference of their predictions is gone.",
            one.closed,
            f"{CALL}.grafts",
        )
        for one in grafts[:top]
        if one.closed > LEAST_SHARE
    ]


def of_weights(weights: WeightDifferences, top: int) -> list[Difference]:
    """The matrices, heads and neurons that changed most, and the rank of the change."""
    if not weights.tensors:
        return []
    total = len(weights.tensors) + weights.equal
    first = weights.tensors[0]
    found = [
        Difference(
            "weights",
            f"{len(weights.tensors)} of {total} tensors differ; most, {_by(first.relative)}, "
            f"{first.name}{_carried(first.directions, first.full)}.",
            first.relative,
            f"{CALL}.weights.tensors",
        )
    ]
    ranks = [(one.rank, one.full) for one in weights.tensors if one.rank is not None and one.full is not None]
    if ranks and all(0 < rank <= full // 4 for rank, full in ranks):
        most = max(rank for rank, _ in ranks)
        found.append(
            Difference(
                "rank",
                f"The change of every matrix has rank {most} or less, as a LoRA of rank {most} makes it.",
                float(most),
                f"{CALL}.weights.tensors",
            )
        )
    named = {one.name for one in weights.tensors}
    for kind, units in (("head", weights.heads), ("neuron", weights.neurons)):
        if units and named:
            found.append(_units(kind, units, top))
    return found


def _units(kind: str, units: Sequence[UnitDifference], top: int) -> Difference:
    """The finding of the heads or neurons that changed, of which a list holds at most `top`."""
    first, alone = units[0], ", and no other one changed" if len(units) < top else ""
    behind = f"; the next, {units[1].name}, by {units[1].relative:.2g}" if len(units) > 1 else alone
    word = f"Head {first.name}" if kind == "head" else f"Neuron {first.name}"
    return Difference(
        kind,
        f"{word} changed most, by {first.relative:.2g} of the norm of its weights{behind}.",
        first.relative,
        f"{CALL}.weights.{kind}s",
        first.name if kind == "neuron" else "",
    )


def of_decoding(decoding: DecodingDifference) -> list[Difference]:
    """Whether changed neurons keep their top token, beside a random change."""
    example = ""
    if decoding.changed:
        name, before, after = decoding.changed[0]
        example = f" {name} had {before!r} and has {after!r}."
    return [
        Difference(
            "decoding",
            f"{decoding.kept:.0%} of {decoding.neurons:,} changed neurons keep their top token; under a random change "
            f"of the same norm {decoding.kept_control:.0%} do.{example}",
            decoding.kept,
            f"{CALL}.decoding",
            decoding.changed[0][0] if decoding.changed else "",
        )
    ]


def of_dictionary(one: DictionaryDifference, top: int) -> list[Difference]:
    """How well a dictionary does on b, and which latents fire more or less."""
    found = []
    if abs(one.unexplained_b - one.unexplained) > LEAST_SHARE:
        found.append(
            Difference(
                "dictionary",
                f"{one.name} leaves {one.unexplained:.1%} of the variance unexplained in a and {one.unexplained_b:.1%} "
                "in b.",
                one.unexplained_b - one.unexplained,
                f"{CALL[:-1]}, dictionaries=[dictionary]).dictionaries",
            )
        )
    for latent in [some for some in one.latents if abs(some.z) > LEAST_Z][:top]:
        word = "more" if latent.z > 0 else "less"
        found.append(
            Difference(
                "latent",
                f"{latent.feature} fires {word} often in b: on {latent.rate_b:.2%} of the tokens, and in a on "
                f"{latent.rate:.2%} ({abs(latent.z):.0f} standard errors).",
                latent.z,
                f"{CALL[:-1]}, dictionaries=[dictionary]).dictionaries[0].latents",
                latent.feature,
            )
        )
    return found


def of_edit(edit: EditDifference) -> list[Difference]:
    """Whether an intervention does the same in both models."""
    if abs(edit.effect - edit.effect_b) <= LEAST_KL + LEAST_SHARE * max(edit.effect, edit.effect_b):
        return []
    return [
        Difference(
            "edit",
            f"{edit.name} moves predictions by {edit.effect:.3g} nats of KL a token in a and by "
            f"{edit.effect_b:.3g} in b.",
            edit.effect_b - edit.effect,
            f"{CALL[:-1]}, interventions=[edit]).edits",
        )
    ]


def _by(relative: float) -> str:
    return "from zero" if relative == float("inf") else f"by {relative:.2g} of its norm"


def _carried(directions: int | None, full: int | None) -> str:
    if directions is None:
        return ""
    return f", where {directions} of {full} directions carry 90% of the change"


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 60 else "…" + words[-59:]

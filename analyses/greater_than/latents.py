"""The latents behind the task: attribution graphs, activity by decade, and their words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import workbench as wb
from analyses.greater_than.task import DECADES, Plan, digit_ids
from analyses.shared.report import say
from workbench.attribution import head_drives, token_drives
from workbench.dictionaries.coder import SparseCoder


def carriers(
    model: wb.model.LanguageModel, coders: Sequence[SparseCoder], examples: Sequence[tuple[str, int, int]], plan: Plan
) -> dict[str, Any]:
    """The latents with the largest effects on the task, from the attribution graphs of the first prompts.

    The target is the logit of the digit right above the decade minus that of the digit right below it. Effects are
    means over prompts, summed over positions.
    """
    ids = digit_ids(model)
    effects: dict[str, dict[str, Any]] = {}
    checks: list[dict[str, Any]] = []
    for number, (text, decade, _) in enumerate(examples[: plan.graphs]):
        graph = wb.attribute(model, list(coders), text, (ids[decade + 1], ids[decade - 1]))
        year = [place for place, token in enumerate(graph.prompt) if token.isdigit()][2]
        for node in graph.nodes:
            if node.feature is None or node.kind != "latent":
                continue
            row = {"feature": str(node.feature), "layer": node.layer, "index": node.feature.index}
            one = effects.setdefault(str(node.feature), row | dict.fromkeys(("effect", "free", "on_decade"), 0.0))
            one["effect"] += node.effect / plan.graphs
            one["free"] += node.gradient_effect / plan.graphs
            one["on_decade"] += node.effect / plan.graphs if node.position == year else 0.0
            one["nodes"] = one.get("nodes", 0) + 1
        checked = wb.attribution.verify_graph(model, list(coders), graph, 10)
        checks.append(
            {
                "prompt": text,
                "value": graph.target.value,
                "completeness": max(graph.completeness()),
                "shares": graph.shares,
                "pearson": checked.pearson,
                "frozen_as_free": checked.frozen_as_free,
            }
        )
        say(f"graph {number + 1} of {plan.graphs}: correlation {checked.pearson['free']:.3f}")
    ranked = sorted(effects.values(), key=lambda one: -abs(one["free"]))
    on_decade = sorted(effects.values(), key=lambda one: -abs(one["on_decade"]))
    return {"latents": ranked[: plan.top], "on_decade": on_decade[: plan.top], "graphs": checks}


def by_decade(
    model: wb.model.LanguageModel, coder: SparseCoder, index: int, examples: Sequence[tuple[str, int, int]]
) -> dict[str, Any]:
    """A latent's mean value on the start year's decade and unit and on the last token, for each decade."""
    sums = {place: [[0.0, 0] for _ in DECADES] for place in ("decade", "unit", "end")}
    with torch.inference_mode():
        for text, decade, _ in examples:
            tokens = model.to_tokens(text)
            texts = model.token_texts(tokens[0])
            digits = [place for place, token in enumerate(texts) if token.isdigit()]
            values = coder.encode(model.capture(tokens, [coder.reads])[coder.reads][0]).value_of(index)
            for name, place in (("decade", digits[2]), ("unit", digits[3]), ("end", len(texts) - 1)):
                one = sums[name][DECADES.index(decade)]
                one[0] += float(values[place])
                one[1] += 1
    return {name: [total / count if count else None for total, count in row] for name, row in sums.items()}


def words(model: wb.model.LanguageModel, coder: SparseCoder, index: int, plan: Plan) -> dict[str, Any]:
    """A latent's de-embedding, and its scores for the ten digits: by the token itself and through four heads."""
    ids = digit_ids(model)
    deembedding = wb.attribution.deembed(model, coder, index, top=plan.top, heads=3)
    heads = head_drives(model, coder, index)
    direct = token_drives(model, coder, index)
    spread = heads[..., ids].std(-1)  # [layers, heads]: the spread of a head's scores over digits
    best = spread.flatten().topk(4).indices.tolist()
    through = [divmod(place, heads.shape[1]) for place in best]
    written = coder.direction(index).float()
    logits = model.network.lm_head.rows(ids) @ (written * model.network.final_norm()[0])
    return {
        "feature": str(coder.feature(index)),
        "deembedding": deembedding.to_dict(),
        "digits": {
            "direct": direct[ids].tolist(),
            "heads": [{"layer": a, "head": b, "scores": heads[a, b, ids].tolist()} for a, b in through],
            "writes": (logits - logits.mean()).tolist(),
        },
    }

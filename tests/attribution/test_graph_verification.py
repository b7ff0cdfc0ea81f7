"""Predicted against measured effects of interventions, in every regime."""

from __future__ import annotations

import math
from typing import Any

import pytest
from attribution_models import PROMPT, coders

import workbench as wb
from workbench.attribution import attribute
from workbench.attribution.verification import verify_graph


def test_frozen_regimes_are_what_the_graph_says(zoo: Any) -> None:
    for name in ("llama", "gpt2", "neox"):
        model = zoo[name]
        for mlps in ("frozen", "linear"):
            mine = coders(model, wb.dictionaries.SkipTranscoder, layers=[0])
            graph = attribute(model, mine, PROMPT, target=7, mlps=mlps)  # type: ignore[arg-type]
            found = verify_graph(model, mine, graph, 8, factor=0.5, regimes=["direct", "latents"])
            # there is no later latent, so both are the edge to the target
            for regime in ("direct", "latents"):
                assert found.measured[regime] == pytest.approx(found.predicted[regime], rel=5e-3, abs=1e-4)


def test_later_latents_respond_by_their_edges(llama: wb.model.LanguageModel) -> None:
    mine = coders(llama, wb.dictionaries.Transcoder)
    graph = attribute(llama, mine, PROMPT, target=7, max_latents=10_000, rest=0.0)
    found = verify_graph(llama, mine, graph, 8, factor=1 - 1e-2, regimes=["latents", "direct"])
    # a small change switches no latent on or off
    assert found.measured["latents"] == pytest.approx(found.predicted["latents"], rel=2e-2, abs=2e-5)
    assert found.predicted["direct"] != pytest.approx(found.predicted["latents"], rel=2e-2, abs=2e-5)


def test_free_is_the_intervention_in_the_plain_model(llama: wb.model.LanguageModel) -> None:
    mine = coders(llama)
    graph = attribute(llama, mine, PROMPT, target=(3, 11))
    found = verify_graph(llama, mine, graph, 6, regimes=["free"])
    for id, change in zip(found.nodes, found.measured["free"], strict=True):
        node = graph.node(id)
        with llama.intervening([wb.Ablate(node.feature, positions=[node.position])]):
            logits = llama(PROMPT[None])[0, -1]
        assert change == pytest.approx(float(logits[3] - logits[11]) - graph.target.value, rel=1e-3, abs=1e-4)
    assert math.isnan(verify_graph(llama, mine, graph, 2, regimes=["free"]).pearson["free"])

"""Targets, transcoders and settings that attribution refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import zoo
from attribution_models import PROMPT, coder, coders

import workbench as wb
from workbench.attribution import AttributionError, attribute
from workbench.attribution.verification import verify_graph


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"target": "two words here"}, "tokens for this model"),
        ({"target": ""}, "0 tokens"),
        ({"target": 1_000_000}, "token's text or its id"),
        ({"target": (7, 7)}, "same"),
        ({"target": (1, 2, 3)}, "two tokens"),
        ({"target": 7, "position": 7}, "positions 0 to 6"),
        ({"target": 7, "max_latents": -1}, "max_latents"),
        ({"target": 7, "mlps": "loose"}, "mlps"),
        ({"target": 7, "batch": 0}, "batch"),
        ({"target": 7, "rest": 1.0}, "rest"),
        ({"target": (wb.Feature("other", 3), 2)}, "not a latent of the transcoders"),
        ({"target": 7, "transcoders": "t0"}, "list"),
        ({"target": 7, "transcoders": [3]}, r"transcoders is a list of SparseCoders or .* not \[3\]"),
        ({"target": 7, "transcoders": [wb.TopKSAE(32, 8, k=2, hook_point="blocks.1.hook_mlp_out")]}, "nowhere|reads"),
        ({"target": 7, "transcoders": [wb.Codebook(32, 8)]}, r"transcoders is a list of SparseCoders or .* not \["),
    ],
)
def test_bad_input(llama: wb.model.LanguageModel, how: dict[str, Any], word: str) -> None:
    how = {"transcoders": coders(llama)} | how
    with pytest.raises(AttributionError, match=word) as caught:
        attribute(llama, how.pop("transcoders"), PROMPT, **how)
    assert "\n" not in str(caught.value)


def test_a_model_in_16_bits_is_attributed_in_float32(tiny_cache: Path) -> None:
    model = wb.load_model(tiny.build("llama").bfloat16(), tokenizer=tiny.tokenizer())
    graph = attribute(model, coders(model), PROMPT)
    assert graph.weights[0].sum() == pytest.approx(graph.totals[0], rel=1e-4)
    assert graph.provenance["model_hash"] == model.hash


def test_a_transcoder_of_another_place_is_refused(llama: wb.model.LanguageModel) -> None:
    one = coder(1, k=2)
    one.reads = "blocks.1.ln1.hook_out"
    with pytest.raises(AttributionError, match=r"t1 reads blocks.1.ln1.hook_out"):
        attribute(llama, [one], PROMPT)


def test_what_is_not_linear_is_refused_by_what_it_is(tiny_cache: Path) -> None:
    model = wb.load_model(zoo.build("deepseek-v2"), tokenizer=tiny.tokenizer())
    with pytest.raises(AttributionError, match="its values in another way than by one matrix for each head"):
        attribute(model, [], PROMPT)


def test_more_bad_input(llama: wb.model.LanguageModel) -> None:
    with pytest.raises(wb.model.PromptError, match="empty"):
        attribute(llama, coders(llama), "")
    with pytest.raises(AttributionError, match="both of layer"):
        attribute(llama, [coder(1, k=2), coder(1, k=3)], PROMPT)
    with pytest.raises(AttributionError, match="wide"):
        attribute(llama, [coder(1, d_model=16, k=2)], PROMPT)
    graph = attribute(llama, coders(llama), PROMPT, 7)
    with pytest.raises(AttributionError, match="other transcoders"):
        verify_graph(llama, coders(llama)[:2], graph)
    with pytest.raises(AttributionError, match="regime"):
        verify_graph(llama, coders(llama), graph, regimes=["some"])  # type: ignore[list-item]
    with pytest.raises(AttributionError, match="not a latent of this graph"):
        verify_graph(llama, coders(llama), graph, [0])
    for nodes in (0, -1, True, 2.5):
        with pytest.raises(AttributionError, match="nodes is"):
            verify_graph(llama, coders(llama), graph, nodes)  # type: ignore[arg-type]
    for factor in (1.0, float("nan"), "0"):
        with pytest.raises(AttributionError, match="factor is"):
            verify_graph(llama, coders(llama), graph, factor=factor)  # type: ignore[arg-type]

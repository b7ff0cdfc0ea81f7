"""Which latents are traced, influence along paths, and pruning."""

from __future__ import annotations

import pytest
import torch
from attribution_models import PROMPT, coders

import workbench as wb
from workbench.attribution import AttributionError, attribute


def test_all_latents_are_traced_where_that_is_allowed(llama: wb.model.LanguageModel) -> None:
    whole = attribute(llama, coders(llama), PROMPT, target=7, max_latents=10_000)
    few = attribute(llama, coders(llama), PROMPT, target=7, max_latents=4, batch=2)
    assert len(few.rows) == 5
    assert set(few.rows) <= {node.id for node in whole.nodes}
    for id in few.rows:
        theirs = whole.weights[whole.rows.index(id)]
        assert torch.allclose(few.weights[few.rows.index(id)], theirs, rtol=1e-4, atol=1e-5)


def test_influence_and_effect_are_sums_over_paths(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, coders(llama), PROMPT, target=7, max_latents=30)
    row_of = {id: row for row, id in enumerate(graph.rows)}
    normed = graph.weights.abs() / graph.weights.abs().sum(1, keepdim=True)

    def walk(id: int, share: float, slope: float, into: dict[int, list[float]]) -> None:
        for column in graph.weights[row_of[id]].nonzero()[:, 0].tolist():
            node = graph.nodes[column]
            part = share * float(normed[row_of[id], column])
            slant = slope * float(graph.weights[row_of[id], column]) / node.value
            found = into.setdefault(column, [0.0, 0.0])
            found[0] += part
            found[1] += slant * node.value
            if column in row_of:
                walk(column, part, slant, into)

    found: dict[int, list[float]] = {}
    walk(0, 1.0, 1.0, found)
    for column, (share, effect) in found.items():
        assert graph.nodes[column].influence == pytest.approx(share, rel=1e-3, abs=1e-6)
        assert graph.nodes[column].effect == pytest.approx(effect, rel=1e-3, abs=1e-5)


def test_pruning_keeps_the_share_asked_for(llama: wb.model.LanguageModel) -> None:
    whole = attribute(llama, coders(llama), PROMPT, target=7)
    total = sum(node.influence for node in whole.nodes[1:])
    assert whole.prune(1.0, 1.0).edges == whole.edges
    for share in (0.9, 0.6, 0.3):
        small = whole.prune(share, 1.0)
        assert sum(node.influence for node in small.nodes[1:]) <= total
        assert len(small) < len(whole)
        kept = sorted((node.influence for node in whole.nodes[1:]), reverse=True)
        least = next(n for n in range(1, len(kept)) if sum(kept[:n]) >= share * total)
        assert len(small.nodes) <= least + 1
        sources = {edge.source for edge in small.edges}
        assert {node.id for node in small.nodes} == sources | {0}  # each has a way to the target
        assert set(small.rows) >= {edge.target for edge in small.edges}
        for edge in small.edges:
            assert edge.weight == float(whole.weights[whole.rows.index(edge.target), edge.source])
    stranger = min(whole.nodes[2:], key=lambda node: node.influence)
    assert stranger in whole.prune(0.3, keep=(stranger.id,)).nodes
    latents = whole.prune(0.5, 1.0, kinds=["latent"])
    assert {node.kind for node in latents.nodes} == {"target", "latent"}
    sizes = sorted((node.influence for node in whole.nodes if node.kind == "latent"), reverse=True)
    least = next(n for n in range(1, len(sizes)) if sum(sizes[:n]) >= 0.5 * sum(sizes))
    assert len(latents) <= least + 1
    with pytest.raises(AttributionError, match="share"):
        whole.prune(0)
    with pytest.raises(AttributionError, match="kind"):
        whole.prune(0.5, kinds=["edge"])


def test_edges_are_pruned_for_each_target_so_that_chains_stay(llama: wb.model.LanguageModel) -> None:
    whole = attribute(llama, coders(llama), PROMPT, target=7)
    between, small = whole.prune(0.6, 1.0), whole.prune(0.6, 0.5)
    assert any(edge.target != whole.target.id for edge in small.edges)
    for row in small.rows:
        sizes = sorted((abs(edge.weight) for edge in between.edges_of(row)), reverse=True)
        kept = [abs(edge.weight) for edge in small.edges_of(row)]
        assert kept == sizes[: len(kept)]
        assert sum(kept) >= 0.5 * sum(sizes) * (1 - 1e-6)
        assert sum(kept[:-1]) < 0.5 * sum(sizes) or not kept


def test_edges_out_of_a_node_are_those_whose_source_it_is(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, coders(llama), PROMPT, target=7, max_latents=30)
    for node in graph.nodes[:12]:
        out = graph.edges_from(node.id)
        assert sorted(out, key=str) == sorted((edge for edge in graph.edges if edge.source == node.id), key=str)
        assert [abs(edge.weight) for edge in out] == sorted((abs(edge.weight) for edge in out), reverse=True)
    with pytest.raises(AttributionError, match="no node"):
        graph.edges_from(10**6)


def test_a_graph_says_which_token_is_likeliest(llama: wb.model.LanguageModel) -> None:
    chances = llama(PROMPT[None])[0, -1].softmax(-1)
    best = int(chances.argmax())
    for target in (None, 7):
        likeliest = attribute(llama, coders(llama), PROMPT, target=target, max_latents=0).provenance["likeliest"]
        assert (likeliest["token"], likeliest["text"]) == (best, llama.token_texts([best])[0])
        assert likeliest["probability"] == pytest.approx(float(chances[best]), rel=1e-3)


def test_tracing_can_be_stopped(llama: wb.model.LanguageModel) -> None:
    told: list[float] = []
    graph = attribute(
        llama, coders(llama), PROMPT, 7, batch=2, progress=lambda s, _: told.append(s), cancel=lambda: len(told) > 2
    )
    assert len(graph.rows) == 5
    assert told == sorted(told)

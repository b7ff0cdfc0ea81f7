"""Supernodes: grouped by what is alike, changed by hand, kept in the file, and ablated as one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attribution_models import PROMPT, coders

import workbench as wb
from workbench.attribution import (
    Graph,
    Supernodes,
    attribute,
    group_nodes,
    load_graph,
    save_graph,
    supernodes_of,
    to_neuronpedia,
    verify_groups,
    with_supernodes,
)
from workbench.attribution.group_verification import predicted_change


@pytest.fixture(scope="module")
def graph(llama: wb.model.LanguageModel) -> Graph:
    return attribute(llama, coders(llama), PROMPT, target=(3, 11), max_latents=10_000, rest=0.0)


def test_a_group_is_ablated_as_one(llama: wb.model.LanguageModel, graph: Graph) -> None:
    mine = coders(llama)
    latents = [node for node in graph.nodes if node.kind == "latent"]
    groups = Supernodes({str(n): [one.id for one in latents[3 * n : 3 * n + 3]] for n in range(6)})
    found = verify_groups(llama, mine, graph, groups, controls=3)
    for name, change in zip(found.names, found.measured, strict=True):
        members = [graph.node(id) for id in groups.groups[name]]
        with llama.intervening([wb.Ablate(one.feature, positions=[one.position]) for one in members]):
            logits = llama(PROMPT[None])[0, -1]
        assert change == pytest.approx(float(logits[3] - logits[11]) - graph.target.value, rel=1e-3, abs=1e-4)
    assert [len(one) for one in found.random] == [3] * 6
    assert all(0 <= one <= 1 for one in found.shares)
    single = Supernodes({str(one.id): [one.id] for one in latents[:5]})
    assert verify_groups(llama, mine, graph, single, controls=0).predicted == pytest.approx(
        [-one.gradient_effect for one in latents[:5]]
    )


def test_what_passes_from_member_to_member_counts_once(graph: Graph) -> None:
    """On a chain of three, in which one latent's whole value comes from another, both together are one of them."""
    nodes = [graph.target, *[node for node in graph.nodes if node.kind == "latent"][:3]]
    one, two, three = (
        replace(node, gradient_effect=effect) for node, effect in zip(nodes[1:], (4.0, 4.0, 1.0), strict=True)
    )
    weights = torch.zeros(3, 4)
    weights[0, 1], weights[1, 2], weights[0, 3], weights[2, 3] = 4.0, 2.0, 1.0, 0.0
    chain = replace(
        graph,
        nodes=[nodes[0], one, two, three],
        rows=[nodes[0].id, one.id, two.id],
        weights=weights,
        invariants=torch.full((3, 4), math.nan),
        scales=[1.0] * 3,
        totals=[5.0, 2.0, 3.0],
    )
    assert predicted_change(chain, [one]) == -4.0
    assert predicted_change(chain, [one, two]) == -4.0
    assert predicted_change(chain, [one, three]) == -5.0


def test_groups_are_alike_and_named(llama: wb.model.LanguageModel, graph: Graph) -> None:
    latents = sorted((one for one in graph.nodes if one.kind == "latent"), key=lambda one: -abs(one.gradient_effect))
    labels = {one.id: "the word dog" if place % 2 else "a comma" for place, one in enumerate(latents[:6])}
    found = group_nodes(llama, coders(llama), graph, labels, least=0.3, most=6)
    assert sorted(id for ids in found.groups.values() for id in ids) == sorted(one.id for one in latents[:6])
    assert all(len({labels[id] for id in ids}) == 1 for ids in found.groups.values())
    assert len(group_nodes(llama, coders(llama), graph, most=6, least=1.0)) >= len(found)
    assert len(group_nodes(llama, coders(llama), graph, most=6, least=0.0)) == 1


def test_groups_are_changed_by_hand_and_kept(graph: Graph, tmp_path: Path) -> None:
    ids = [node.id for node in graph.nodes if node.kind == "latent"][:5]
    groups = Supernodes({"dogs": ids[:3], "cats": ids[3:]})
    assert groups.rename("dogs", "wolves").groups == {"wolves": ids[:3], "cats": ids[3:]}
    assert groups.merge(["dogs", "cats"], "pets").groups == {"pets": ids}
    assert groups.split("dogs", ids[:1], "puppy").groups == {"dogs": ids[1:3], "cats": ids[3:], "puppy": ids[:1]}
    kept = with_supernodes(graph, groups)
    save_graph(kept, tmp_path / "g.json")
    assert supernodes_of(load_graph(tmp_path / "g.json")) == groups
    assert supernodes_of(kept.prune(0.5, keep=ids)) == groups
    assert supernodes_of(graph) == Supernodes({})
    viewed = to_neuronpedia(kept.prune(0.3, 0.3, keep=ids), "x")["qParams"]["supernodes"]
    assert [(name, len(members)) for name, *members in viewed] == [("dogs", 3), ("cats", 2)]
    for wrong in (
        lambda: groups.rename("mice", "x"),
        lambda: groups.rename("dogs", "cats"),
        lambda: groups.rename("dogs", " "),
        lambda: groups.split("dogs", ids[:3], "x"),
        lambda: groups.split("dogs", ids[3:], "x"),
        lambda: groups.merge([], "x"),
        lambda: with_supernodes(graph, Supernodes({"a": ids, "b": ids})),
    ):
        with pytest.raises(wb.attribution.AttributionError):
            wrong()


def test_groups_that_cannot_be_tested(llama: wb.model.LanguageModel, graph: Graph) -> None:
    with pytest.raises(wb.attribution.AttributionError, match="not a latent"):
        verify_groups(llama, coders(llama), graph, Supernodes({"a": [graph.target.id]}))
    with pytest.raises(wb.attribution.AttributionError, match="no supernode"):
        verify_groups(llama, coders(llama), graph, Supernodes({}))
    with pytest.raises(wb.attribution.AttributionError, match="another model"):
        verify_groups(llama, coders(llama)[:1], graph, Supernodes({"a": []}))


def test_a_node_named_twice_in_a_group_counts_once(llama: wb.model.LanguageModel, graph: Graph) -> None:
    one, two = [node.id for node in graph.nodes if node.kind == "latent"][:2]
    found = [
        verify_groups(llama, coders(llama), graph, Supernodes({"a": ids}), controls=2)
        for ids in ([one, two], [one, two, one])
    ]
    assert found[0].predicted == found[1].predicted
    assert found[0].sizes == found[1].sizes == [2]

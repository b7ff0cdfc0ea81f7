"""Graphs of circuit-tracer and Neuronpedia: read as they are meant, and ours in their form.

`tests/fixtures/graphs` is written by circuit-tracer itself (`scripts/make_graph_fixtures.py`). With
WORKBENCH_CIRCUIT_TRACER_PYTHON, an environment that has it, it opens what we write; WORKBENCH_GRAPH_SCHEMA names
Neuronpedia's JSON schema.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from attribution_models import PROMPT, coders

import workbench as wb
from workbench.attribution import (
    AttributionError,
    attribute,
    load_viewer_graph,
    read_viewer_graph,
    save_viewer_graph,
    to_neuronpedia,
)

HERE = Path(__file__).parents[1] / "fixtures" / "graphs"
PEER, SCHEMA = os.environ.get("WORKBENCH_CIRCUIT_TRACER_PYTHON"), os.environ.get("WORKBENCH_GRAPH_SCHEMA")
CHECK = Path(__file__).parents[2] / "scripts" / "make_graph_fixtures.py"


def test_a_graph_of_circuit_tracer_is_read() -> None:
    saved = json.loads((HERE / "graph.json").read_text())
    graph = load_viewer_graph(HERE / "graph.json")
    assert (graph.model, graph.prompt) == ("tiny", saved["metadata"]["prompt_tokens"])
    assert [node.name for node in graph.nodes] == [node["node_id"] for node in saved["nodes"]]
    assert [(node.label, node.value, node.layer) for node in graph.targets] == [
        ('Output " dog" (p=0.600)', pytest.approx(0.6), 3),
        ('Output " cat" (p=0.250)', pytest.approx(0.25), 3),
    ]
    latents = [node for node in graph.nodes if node.kind == "latent"]
    # the fixture's script numbers them so
    assert [node.index for node in latents] == [7 * node.layer + 3 * node.position + 5 for node in latents]
    assert [(one.source, one.target, one.weight) for one in graph.edges] == [
        (graph_id(graph, link["source"]), graph_id(graph, link["target"]), link["weight"]) for link in saved["links"]
    ]
    expected = json.loads((HERE / "expected.json").read_text())
    assert {node.name: node.influence for node in graph.nodes} == pytest.approx(expected, abs=1e-5)
    assert read_viewer_graph(json.dumps(graph.to_dict())) == graph
    assert graph.to_dict()["nodes"] == saved["nodes"]


def graph_id(graph: Any, name: str) -> int:
    return next(node.id for node in graph.nodes if node.name == name)


def test_a_published_graph_is_pruned_to_what_leads_to_its_logits() -> None:
    graph = load_viewer_graph(HERE / "graph.json")
    part = graph.prune(0.5, 0.8, keep=[graph.nodes[0].id])
    assert {node.id for node in graph.targets} | {graph.nodes[0].id} <= {node.id for node in part.nodes}
    assert len(part) < len(graph)
    sources = {edge.source for edge in part.edges}
    assert all(node.id in sources for node in part.nodes if node.kind != "target" and node != graph.nodes[0])
    assert {edge.target for edge in part.edges} <= {node.id for node in part.nodes}
    assert len(graph.prune(1.0, 1.0).edges) == len([one for one in graph.edges if one.weight])
    assert {node.kind for node in graph.prune(1.0, 1.0, kinds=["latent"]).nodes} == {"latent", "target"}


def changed(*path: Any, value: Any) -> str:
    content = json.loads((HERE / "graph.json").read_text())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(content)


def test_features_whose_name_and_number_disagree_have_no_index() -> None:
    first = load_viewer_graph(HERE / "graph.json").nodes[0]
    assert (first.name, first.layer, first.index) == ("0_8_1", 0, 8)
    for path, value, index in (
        (("feature",), 8, 8),  # the number may be the index itself
        (("feature",), 45, None),
        (("feature",), None, None),
        (("layer",), "1", None),
        (("layer",), 0, 8),
        (("ctx_idx",), 2, None),
        (("feature_type",), "a word of tomorrow", None),
    ):
        node = read_viewer_graph(changed("nodes", 0, *path, value=value)).nodes[0]
        assert node.index == index, (path, value)
    assert node.kind == "other"


def test_labels_pins_and_supernodes_of_both_viewers() -> None:
    graph = load_viewer_graph(HERE / "graph.json")
    first, second = graph.nodes[0], graph.nodes[1]
    lists = {
        "pinnedIds": [first.name, "27_1_1"],
        "supernodes": [["pets", first.name, second.name, "27_1_1"], []],
        "clerps": [["0_44_1", "barking"]],
    }
    texts = {"pinnedIds": first.name, "supernodes": json.dumps(lists["supernodes"]), "clerps": '[["44", "barking"]]'}
    for view in (lists, texts):
        read = read_viewer_graph(changed("qParams", value=view))
        assert (read.pinned, read.supernodes) == ([first.id], [("pets", [first.id, second.id])])
        assert [read.nodes[0].label, read.nodes[1].label] == ["barking", "layer 0, feature 11"]
    assert read_viewer_graph(changed("nodes", 0, "clerp", value="dogs")).nodes[0].label == "dogs"
    missing = read_viewer_graph(changed("links", 0, "source", value="27_1_1"))
    assert (missing.left_out, len(missing.edges)) == (1, len(graph.edges) - 1)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("nodes", 1, "node_id"), "0_8_1", "two of its nodes are called '0_8_1'"),
        (("nodes", 0, "layer"), "E1", "is in no layer: 'E1'"),
        (("nodes", 0, "layer"), -1, "is in no layer"),
        (("nodes", 0, "ctx_idx"), 5, "outside the prompt"),
        (("nodes",), [], "none of its nodes is a logit"),
        (("metadata", "prompt_tokens"), [], "its prompt has no tokens"),
        (("metadata", "scan"), ..., "scan"),
        (("links", 0, "weight"), "much", "weight should be"),
        (("qParams", "supernodes"), "[[1]]", "its supernodes can't be read"),
        (("links", 0, "target"), "E_40_0", "lead in a circle"),
    ],
)
def test_what_is_wrong_with_a_published_graph_is_said(path: Any, value: Any, words: str) -> None:
    if words == "lead in a circle":  # two nodes that feed each other
        saved = json.loads((HERE / "graph.json").read_text())
        link = saved["links"][0]
        text = changed("links", value=[*saved["links"], {**link, "source": link["target"], "target": link["source"]}])
    else:
        text = changed(*path, value={} if value is ... else value)
    with pytest.raises(AttributionError, match=words) as caught:
        read_viewer_graph(text)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(".")


def test_several_logits_make_one_graph(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    mine = coders(llama)
    graphs = [attribute(llama, mine, PROMPT, target=token) for token in (7, 9)]
    whole = read_viewer_graph(json.dumps(to_neuronpedia(graphs, "tiny")))
    assert [node.label for node in sorted(whole.targets, key=lambda node: node.id)] == [
        f'Output "{one.target.label}" (p={one.provenance["target_probabilities"][0]:.3f})' for one in graphs
    ]
    names = {node.name: node for node in whole.nodes}
    chances = [one.provenance["target_probabilities"][0] for one in graphs]
    latents = [node for node in graphs[0].nodes if node.kind == "latent"]
    shares = {
        f"{node.layer}_{node.feature.index}_{node.position}": sum(
            chance * one.node(node.id).influence for chance, one in zip(chances, graphs, strict=True)
        )
        for node in latents
    }
    by_share = sorted(shares, key=lambda name: -shares[name])
    assert by_share == sorted(shares, key=lambda name: names[name].content["influence"])  # viewers prune by the sum
    assert max(node.content["influence"] or 0 for node in whole.nodes) == pytest.approx(1.0)
    weights = {(one.source, one.target): one.weight for one in whole.edges}
    for token, graph in zip((7, 9), graphs, strict=True):
        logit = next(node for node in whole.targets if node.content["feature"] == token)
        for edge in graph.edges_of(0):
            if (source := graph.node(edge.source)).kind == "latent":
                known = names[f"{source.layer}_{source.feature.index}_{source.position}"]
                assert weights[known.id, logit.id] == edge.weight
    latent = max(latents, key=lambda node: node.influence)
    with pytest.raises(AttributionError, match="same token"):
        to_neuronpedia([graphs[0], graphs[0]], "tiny")
    with pytest.raises(AttributionError, match="different prompts"):
        to_neuronpedia([graphs[0], attribute(llama, mine, PROMPT[:4], target=7)], "tiny")
    with pytest.raises(AttributionError, match="at least one"):
        to_neuronpedia([], "tiny")
    part = [one.prune(0.7) for one in graphs]
    content = to_neuronpedia(
        part, "tiny", pinned=[latent.id], supernodes={"pets": [latent.id]}, labels={latent.id: "dogs", 0: "first"}
    )
    assert [node["node_id"] for node in content["nodes"] if "first" in node["clerp"]] == [
        node["node_id"] for node in content["nodes"] if node["is_target_logit"]
    ]
    save_viewer_graph(content, tmp_path / "graph.json")
    back = load_viewer_graph(tmp_path / "graph.json")
    assert [back.node(id).label for id in back.pinned] == ["dogs"]
    assert [(group, len(ids)) for group, ids in back.supernodes] == [("pets", 1)]
    opened_by_circuit_tracer(tmp_path / "graph.json")


def opened_by_circuit_tracer(file: Path) -> None:
    if PEER:
        subprocess.run([PEER, str(CHECK), "check", str(file), *([SCHEMA] if SCHEMA else [])], check=True)


def test_errors_are_called_as_circuit_tracer_calls_them_where_no_latent_is(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, coders(llama), PROMPT, target=7)
    content = to_neuronpedia(graph, "tiny")
    names = [node["node_id"] for node in content["nodes"]]
    assert len(set(names)) == len(names)
    latents = {node["node_id"] for node in content["nodes"] if node["feature_type"] == "cross layer transcoder"}
    errors = [node for node in content["nodes"] if node["feature_type"] == "mlp reconstruction error"]
    assert any(f"0_{node['layer']}_{node['ctx_idx']}" in latents for node in errors)  # latent 1 of layer 0 is active
    for node in errors:
        theirs = f"0_{node['layer']}_{node['ctx_idx']}"
        assert node["node_id"] == theirs or theirs in latents
    assert read_viewer_graph(json.dumps(content)).left_out == 0


@pytest.mark.skipif(not PEER, reason="circuit-tracer has an environment of its own")
def test_circuit_tracer_opens_a_graph(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    graph = attribute(llama, coders(llama), PROMPT, target=9).prune(0.5)
    save_viewer_graph(to_neuronpedia(graph, "tiny"), tmp_path / "graph.json")
    opened_by_circuit_tracer(tmp_path / "graph.json")

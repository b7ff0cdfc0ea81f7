"""Graphs as JSON: round trip, format 1, altered files, Neuronpedia's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from attribution_models import PROMPT, coders

import workbench as wb
from workbench.attribution import (
    AttributionError,
    Graph,
    attribute,
    from_json,
    load_graph,
    save_graph,
    to_json,
    to_neuronpedia,
    verify_graph,
)

FORMAT_1, FORMAT_2 = (Path(__file__).parents[1] / "fixtures" / f"graph_format_{number}.json" for number in (1, 2))


def test_a_graph_comes_back_from_json(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    graph = attribute(llama, coders(llama), "The dog ran", target="a").prune(0.7)
    save_graph(graph, tmp_path / "graph.json")
    back = load_graph(tmp_path / "graph.json")
    mine = coders(llama)
    assert verify_graph(llama, mine, back, 3).measured == verify_graph(llama, mine, graph, 3).measured
    assert isinstance(back, Graph)
    assert back.nodes == graph.nodes
    assert back.edges == graph.edges
    assert (back.prompt, back.tokens, back.rows) == (graph.prompt, graph.tokens, graph.rows)
    assert back.provenance == graph.provenance
    assert json.loads(to_json(back)) == json.loads(to_json(graph))
    for text in ("{", "[]", '{"format": 99}', '{"format": 1}'):
        with pytest.raises(AttributionError, match="graph"):
            from_json(text)
    with pytest.raises(AttributionError, match="can't be read"):
        load_graph(tmp_path / "none.json")


def test_a_saved_graph_that_was_altered_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    save_graph(load_graph(FORMAT_1), file)
    save_graph(load_graph(FORMAT_1), file)
    text = file.read_text()
    content = json.loads(text)
    whole = to_json(load_graph(FORMAT_1))
    assert json.loads(whole) == {key: value for key, value in content.items() if key != "sha256"}
    for same in (text, text + "\n", json.dumps(content), whole):
        file.write_text(same)
        assert to_json(load_graph(file)) == to_json(from_json(same)) == whole
    content["rows"][0]["weights"][0] += 0.1
    for other in (content, content | {"sha256": 1}, content | {"sha256": "0" * 64}):
        file.write_text(json.dumps(other))
        with pytest.raises(AttributionError, match=r"altered after it was saved|sha256"):
            load_graph(file)
    file.write_text(text.replace('"scale":', '"scale":1', 1))
    with pytest.raises(AttributionError, match="altered after it was saved"):
        load_graph(file)
    file.write_text(FORMAT_1.read_text())
    save_graph(load_graph(FORMAT_1), file)  # over a file of an older version


def test_a_graph_of_format_1_is_read(llama: wb.model.LanguageModel) -> None:
    saved = json.loads(FORMAT_1.read_text())
    graph = load_graph(FORMAT_1)
    assert [node.gradient_effect for node in graph.nodes] == [node["free_effect"] for node in saved["nodes"]]
    assert [node.id for node in graph.nodes] == [node["id"] for node in saved["nodes"]]
    assert graph.provenance == saved["made"]
    assert {(edge.source, edge.target): edge.weight for edge in graph.edges} == {
        (edge["source"], edge["target"]): pytest.approx(edge["weight"]) for edge in saved["edges"]
    }
    written = json.loads(to_json(graph))
    assert (written["format"], written["provenance"]) == (3, saved["made"])
    assert from_json(to_json(graph)).nodes == graph.nodes
    whole = attribute(llama, coders(llama), PROMPT, target=7)
    for node in graph.nodes:
        now = whole.node(node.id)
        assert (now.kind, now.label) == (node.kind, node.label)
        assert now.gradient_effect == pytest.approx(node.gradient_effect, rel=1e-3, abs=1e-5)
        assert now.influence == pytest.approx(node.influence, rel=1e-3, abs=1e-5)


def test_a_graph_of_format_2_is_read_and_its_seal_is_checked(tmp_path: Path) -> None:
    old = json.loads(FORMAT_2.read_text())
    graph = load_graph(FORMAT_2)
    assert to_json(graph) == to_json(load_graph(FORMAT_1))
    edges = [{**edge.to_dict(), "factor": pytest.approx(edge.factor)} for edge in graph.edges]
    assert edges == old["edges"]
    file = tmp_path / "graph.json"
    for place, value in (("edges", 0, "weight"), 0.5), (("nodes", 0, "label"), "x"):
        file.write_text(altered(old, place, value))
        with pytest.raises(AttributionError, match="altered after it was saved"):
            load_graph(file)
    file.write_text(altered(old, ("edges", 0, "target"), 999_999))
    with pytest.raises(AttributionError, match="leads to a node without a row"):
        load_graph(file)
    file.write_text(FORMAT_2.read_text())
    save_graph(graph, file)  # over a file of an older version
    assert load_graph(file).edges == graph.edges


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every key and item; of a list the first item only."""
    inside = (
        content.items() if isinstance(content, dict) else enumerate(content[:1] if isinstance(content, list) else [])
    )
    return [one for key, value in inside for one in [(*path, key), *places(value, (*path, key))]]


def altered(content: Any, path: tuple[Any, ...], value: Any) -> str:
    """The JSON text in which the value at a path is another one, or the key is missing where that is `...`."""
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(copy)


@pytest.mark.parametrize("value", [..., {}, [[1]], "x", -7, 1e999, True, float("nan")])
def test_altered_graphs_are_refused_in_one_sentence(value: Any) -> None:
    old = json.loads(FORMAT_1.read_text())
    refused: list[str] = []
    for content in (old, json.loads(FORMAT_2.read_text()), json.loads(to_json(from_json(json.dumps(old))))):
        for path in places(content):
            try:
                from_json(altered(content, path, value))
            except AttributionError as error:
                refused.append(str(error))
    assert len(refused) > 30
    for sentence in refused:
        assert "\n" not in sentence
        assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("nodes", 0, "kind"), "latent", "first node is not its target"),
        (("nodes", 1, "id"), 0, "have the same id"),
        (("rows", 0, "sources", 0), 999_999, "names a node that is not there"),
        (("rows", 0, "weights"), [0.5], "another number of weights than of sources"),
        (("rows", 0, "invariants"), [], "another number of weights than of sources"),
        (("rows", 0, "weights", 0), 1e39, "too large for 32 bits"),
        (("nodes", 1, "position"), 7, "outside the prompt"),
        (("tokens",), [5], "another number of tokens"),
        (("nodes", 1, "kind"), "edge", r"nodes\.1\.kind should be 'target', 'latent'"),
        (("provenance",), ..., "has no provenance"),
        (("format",), 4, "is in format 4"),
        (("provenance", "target_tokens"), [], "neither a token nor a latent"),
    ],
)
def test_what_is_wrong_is_named(path: tuple[Any, ...], value: Any, words: str) -> None:
    content = json.loads(to_json(load_graph(FORMAT_1)))
    with pytest.raises(AttributionError, match=words):
        from_json(altered(content, path, value))


def test_deep_nesting_is_refused() -> None:
    for text in ("[" * 100_000, '{"format": 2, "prompt": ' + "[" * 100_000 + "]" * 100_000 + "}"):
        with pytest.raises(AttributionError, match="nested too deeply"):
            from_json(text)


def test_neuronpedias_form(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, coders(llama), PROMPT, target=7).prune(0.7)
    latent = next(node for node in graph.nodes if node.kind == "latent")
    said = json.loads(json.dumps(to_neuronpedia(graph, "tiny", pinned=[latent.id])))
    names = [node["node_id"] for node in said["nodes"]]
    assert len(set(names)) == len(names) == sum(node.kind != "bias" for node in graph.nodes)
    assert {link["source"] for link in said["links"]} | {link["target"] for link in said["links"]} <= set(names)
    pinned = f"{latent.layer}_{latent.feature.index}_{latent.position}"
    assert said["qParams"]["pinnedIds"] == [pinned]
    node = said["nodes"][names.index(pinned)]
    assert (node["layer"], node["ctx_idx"]) == (str(latent.layer), latent.position)
    assert said["metadata"]["prompt_tokens"] == graph.prompt
    (target,) = [node for node in said["nodes"] if node["is_target_logit"]]
    logits = llama(PROMPT[None])[0, -1]
    assert (target["feature"], target["feature_type"]) == (7, "logit")
    assert target["token_prob"] == pytest.approx(float(logits.softmax(-1)[7]), rel=1e-4)
    assert {node["token_prob"] for node in said["nodes"] if node is not target} == {0.0}
    back = from_json(to_json(graph))
    assert to_neuronpedia(back, "tiny", pinned=[latent.id]) == to_neuronpedia(graph, "tiny", pinned=[latent.id])
    del back.provenance["target_probabilities"]
    with pytest.raises(AttributionError, match="without the probability"):
        to_neuronpedia(back, "tiny")


def test_a_latent_as_the_target_is_exported_as_a_latent(llama: wb.model.LanguageModel) -> None:
    mine = coders(llama)
    whole = attribute(llama, mine, PROMPT, target=7)
    latent = next(node for node in reversed(whole.nodes) if node.kind == "latent" and node.layer == 2)
    graph = attribute(llama, mine, PROMPT, target=(latent.feature, latent.position))
    for one in (graph, graph.prune(0.7)):
        said = to_neuronpedia(one, "tiny")
        names = [node["node_id"] for node in said["nodes"]]
        assert len(set(names)) == len(names)
        node = said["nodes"][names.index(f"2_{latent.feature.index}_{latent.position}")]
        assert (node["feature_type"], node["is_target_logit"]) == ("cross layer transcoder", False)
        assert node["activation"] == pytest.approx(latent.value, rel=1e-3)
        assert any(link["target"] == node["node_id"] for link in said["links"])
        assert not any("_-1_" in name for name in names if name.startswith("3"))

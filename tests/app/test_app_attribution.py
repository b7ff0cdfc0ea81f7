"""The Attribution page without a browser: a tiny model, three tiny transcoders; and its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from attribution_models import coder
from pages import button, complaint, ended, quiet, run_code, script, words
from pages import visit as visit_page
from streamlit.testing.v1 import AppTest
from test_graph_cross_layer import clt

import workbench as wb
from workbench.attribution import from_json
from workbench.figures.attribution import LOOKS, attribution_graph

TEXT = "The dog <b>ran</b> to"


class Shelf:
    """A tiny model's folder, and beside it transcoders."""

    def __init__(self, root: Path):
        self.model_folder, self.dictionaries = root / "model", root / "dictionaries"
        tiny.build("llama").save_pretrained(self.model_folder)
        tiny.tokenizer(chat=False).save_pretrained(self.model_folder)
        self.model = wb.load_model(str(self.model_folder))
        (root / "texts.txt").write_text("\n\n".join(tiny.TEXT.splitlines() * 4))
        for layer in range(3):
            one = coder(layer, wb.dictionaries.TopKSkipTranscoder, k=4)
            one.save(self.dictionaries / one.name)
            if layer == 1:
                wb.build_index(
                    self.model, one, wb.Corpus.load(str(root / "texts.txt")), self.dictionaries / one.name / "index"
                )
        wb.TopKSAE(32, 16, k=4, hook_point="blocks.1.hook_resid_post", name="sae").save(self.dictionaries / "sae")

    def graph(self, target: Any = None, **how: Any) -> wb.attribution.Graph:
        """What the page traces, whole."""
        return wb.attribute(self.model, self.coders, TEXT, target, **how)

    @property
    def coders(self) -> list[Any]:
        return [wb.load_dictionary(self.dictionaries / f"t{layer}") for layer in range(3)]


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Shelf(tmp_path_factory.mktemp("attribution"))


@pytest.fixture
def shelf(_made: Shelf, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """The model and dictionaries that the app finds."""
    monkeypatch.setenv("WORKBENCH_DICTIONARIES", str(_made.dictionaries))
    monkeypatch.setenv("WORKBENCH_RUNS", str(_made.dictionaries / "none"))
    from shared import dictionaries

    monkeypatch.setattr(dictionaries.shipped, "HOME", _made.dictionaries / "none")
    return _made


def visit(shelf: Shelf) -> AppTest:
    """A new session on the page."""
    return visit_page("attribution", shelf.model_folder)


def traced(page: AppTest) -> AppTest:
    """The page once its graph is there."""
    button(page, "Attribute").click().run()
    return ended(page, page.session_state["attributed"].key)


def asked(shelf: Shelf) -> AppTest:
    """The page with the graph of the likeliest token."""
    page = visit(shelf)
    page.text_area(key="attributed prompt").set_value(TEXT).run()
    return traced(page)


def shown(graph: wb.attribution.Graph, name: str, share: float) -> int:
    """The most influential latent of a dictionary whose name begins so, of those that the page shows."""
    nodes = sorted(
        graph.prune(0.98, 0.98).prune(share, 0.9, kinds=["latent", "embedding", "error"]).nodes,
        key=lambda node: -node.influence,
    )
    return next(node.id for node in nodes if node.kind == "latent" and str(node.feature).startswith(name))


def test_a_graph_is_traced_and_shown(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = visit(shelf)
    assert page.multiselect(key="attributed with").options == [
        f"t{layer} · blocks.{layer}.hook_mlp_out" for layer in range(3)
    ]
    page.text_area(key="attributed prompt").set_value(TEXT).run()
    page = quiet(traced(page))
    graph = shelf.graph()
    assert page.metric[0].value == f"{graph.target.value:.3f}"
    assert float(page.metric[2].value) < 1e-3
    monkeypatch.chdir(tmp_path)  # where the script writes its file
    page.slider(key="attribution share").set_value(0.6).run()
    printed = run_code(script(page, "wb.attribute("))
    assert printed.splitlines()[0].split()[-1] == str(max(graph.completeness()))
    assert any(" -> " in line for line in printed.splitlines())
    part = wb.attribution.load_graph("graph.json")
    assert part.target.label == graph.target.label
    said = f"{len(part):,} of {sum(graph.counts.values()):,} nodes, {len(part.edges):,} edges."
    assert said in [one.value for one in page.caption]
    assert any(edge.target != part.target.id for edge in part.edges)
    assert not any("likelier" in one.value for one in page.info)


def test_a_cross_layer_transcoder_stands_for_every_layer(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = clt(shelf.model)
    made.save(tmp_path / "clt")
    monkeypatch.setenv("WORKBENCH_DICTIONARIES", str(tmp_path))
    page = visit(shelf)
    assert page.multiselect(key="attributed with").value == ["clt"]
    page.text_area(key="attributed prompt").set_value(TEXT).run()
    page = quiet(traced(page))
    graph = wb.attribute(shelf.model, [made], TEXT)
    assert page.metric[0].value == f"{graph.target.value:.3f}"
    assert float(page.metric[2].value) < 1e-3


def test_settings_reach_the_graph(shelf: Shelf) -> None:
    page = visit(shelf)
    page.text_area(key="attributed prompt").set_value(TEXT)
    page.text_input(key="attributed token").set_value("a")
    page.text_input(key="other token").set_value("b")
    page.number_input(key="attributed latents").set_value(3)
    page.selectbox(key="attributed mlps").set_value("frozen")
    page.multiselect(key="attributed with").set_value(["t0", "t2"]).run()
    page = quiet(traced(page))
    graph = wb.attribute(shelf.model, shelf.coders[::2], TEXT, ("a", "b"), max_latents=3, mlps="frozen")
    assert page.metric[0].value == f"{graph.target.value:.3f}"
    assert page.metric[1].value == "3"
    best = graph.provenance["likeliest"]
    assert best["text"] not in ("a", "b")
    assert any(f"likelier here ({best['probability']:.1%})" in one.value.replace("\\", "") for one in page.info)
    page.text_input(key="other token").set_value("").run()
    assert any("settings have changed" in one.value for one in page.caption)


def test_a_node_its_card_and_what_taking_it_out_does(shelf: Shelf) -> None:
    page = quiet(asked(shelf))
    graph = shelf.graph()
    nodes = {node.id: node for node in graph.nodes}
    page.slider(key="attribution share").set_value(0.95).run()
    latent = shown(graph, "t1", 0.95)
    page.selectbox(key="attribution node").set_value(latent).run()
    node = nodes[latent]
    assert any(f"t1:{node.feature.index}" in one.value.replace("\\", "") for one in quiet(page).markdown)
    assert f"t1, latent {node.feature.index}" in [head.value for head in page.subheader]  # its card
    button(page, "Close").click().run()
    assert f"t1, latent {node.feature.index}" not in [head.value for head in quiet(page).subheader]
    button(page, "Show its card").click().run()
    assert f"t1, latent {node.feature.index}" in [head.value for head in quiet(page).subheader]

    button(page, "Pin").click().run()
    assert page.session_state["attribution pins"] == [latent]
    button(page, "Measure").click().run()
    frame = quiet(page).dataframe[-1].value
    found = wb.attribution.verify_graph(shelf.model, shelf.coders, graph, [latent])
    for regime in ("direct", "latents", "free"):
        assert list(frame[f"{regime} measured"]) == [f"{found.measured[regime][0]:+.4f}"]
        assert list(frame[f"{regime} predicted"]) == [f"{found.predicted[regime][0]:+.4f}"]
    button(page, "All of them together").click().run()
    assert "**The next token**" in words(quiet(page))
    button(page, "Unpin").click().run()
    assert page.session_state["attribution pins"] == []
    page.selectbox(key="attribution node").set_value(None).run()
    button(quiet(page), "Measure the ten strongest").click().run()
    assert len(quiet(page).dataframe[-1].value) == 10
    assert any("Correlation" in one.value for one in page.caption)


def test_supernodes_are_grouped_tested_and_merged(shelf: Shelf) -> None:
    page = traced(visit(shelf))
    page.button(key="group latents").click().run()
    quiet(page)
    key, groups = page.session_state["attribution groups"]
    assert len(groups) >= 2
    page.button(key="test groups").click().run()
    assert any("correlate with r" in one.value for one in quiet(page).caption)
    names = list(groups.groups)[:2]
    page.multiselect(key="edited groups").set_value(names).run()
    page.text_input(key="new group").set_value("<b>pets").run()
    page.button(key="Merge groups").click().run()
    quiet(page)
    assert page.session_state["attribution groups"] == (key, groups.merge(names, "<b>pets"))
    assert page.button(key="Rename groups").disabled  # no group of the old names is chosen any more


def test_deembeddings_on_the_page(shelf: Shelf) -> None:
    page = asked(shelf)
    graph = shelf.graph()
    page.slider(key="attribution share").set_value(0.95).run()
    latent = shown(graph, "t", 0.95)
    page.selectbox(key="attribution node").set_value(latent).run()
    feature = graph.node(latent).feature
    page.toggle(key=f"deembed {feature}").set_value(True).run()
    found = wb.attribution.deembed(shelf.model, shelf.coders[graph.node(latent).layer], feature.index, top=12, heads=3)
    assert any(
        f"Head {found.heads[0].head} of layer {found.heads[0].layer}" in one.value for one in quiet(page).caption
    )


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("attributed token", "two words here", "tokens for this model"),
        ("attributed prompt", "", "empty"),
        ("other token", "a", "Name the token"),
    ],
)
def test_mistakes_are_sentences(shelf: Shelf, field: str, value: str, word: str) -> None:
    page = visit(shelf)
    place = page.text_area if field == "attributed prompt" else page.text_input
    place(key=field).set_value(value).run()
    if field == "other token":
        button(page, "Attribute").click().run()
    else:
        page = traced(page)
    assert word in complaint(page)


def test_without_transcoders_the_page_says_so(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DICTIONARIES", str(shelf.dictionaries / "none"))
    assert "no transcoder" in quiet(visit(shelf)).info[0].value


def test_tracing_is_cancelled_in_order(shelf: Shelf) -> None:
    import caching
    from attribution import panel
    from attribution.request import AttributionRequest

    request = AttributionRequest(
        str(shelf.model_folder), ("t0",), (str(shelf.dictionaries / "t0"),), TEXT * 3, "", "", 20, "linear", "x"
    )
    panel.begin(shelf.model, request)
    task = caching.task(request.key)
    task.stop()
    task.wait(60)
    assert not task.failed
    assert task.result().traced <= 20


# ---- the picture


def test_the_picture_shows_what_the_graph_holds(shelf: Shelf) -> None:
    graph = shelf.graph().prune(0.6)
    figure = attribution_graph(graph, {graph.nodes[-1].id: "<i>words</i>"}, chosen=graph.nodes[1].id, pinned=[0])
    drawn = {
        id: kind
        for kind, (name, *_) in LOOKS.items()
        for one in figure.data
        if one.name == name
        for id in one.customdata
    }
    assert drawn == {node.id: node.kind for node in graph.nodes}
    lines = [one for one in figure.data if one.mode == "lines"]
    assert sum(len(one.x) for one in lines) == 3 * len(graph.edges)
    said = json.dumps(figure.to_dict(), default=str)
    assert "<i>" not in said
    assert "&lt;i&gt;words" in said
    assert "<b>ran" not in said


def test_every_node_can_be_clicked_and_its_area_is_its_influence(shelf: Shelf) -> None:
    """Plotly opens what is nearest: within a point's radius the smaller one, else the one whose edge is nearer."""
    graph = shelf.graph().prune(0.95, kinds=["latent", "embedding", "error"])
    chosen = next(id for id in graph.rows if id != graph.target.id)
    figure = attribution_graph(graph, chosen=chosen)
    across = 850 / (figure.layout.xaxis.range[1] - figure.layout.xaxis.range[0])
    high = (figure.layout.height - 66) / (figure.layout.yaxis.range[1] - figure.layout.yaxis.range[0])
    points = [
        (id, x * across, y * high, max(3.0, size / 2))
        for one in figure.data
        if one.hoverinfo != "skip"
        for id, x, y, size in zip(one.customdata, one.x, one.y, one.marker.size, strict=True)
    ]
    assert len(points) == len(graph) > 50
    for id, x, y, _ in points:
        away = [
            max(((x - there) ** 2 + (y - up) ** 2) ** 0.5 - radius, 1 - 3 / radius) for _, there, up, radius in points
        ]
        nearest = min(range(len(points)), key=away.__getitem__)
        assert points[nearest][0] == id
        assert away.count(away[nearest]) == 1
    influence = {node.id: node.influence for node in graph.nodes}
    shares = [influence[id] / radius**2 for id, _, _, radius in points if radius > 3 and id != graph.target.id]
    assert len(shares) > 5
    assert max(shares) == pytest.approx(min(shares))


def test_edges_of_the_chosen_node_are_drawn_though_they_were_pruned(shelf: Shelf) -> None:
    whole = shelf.graph()
    graph = whole.prune(0.6, 0.5)
    chosen = next(id for id in graph.rows if id != graph.target.id)
    into = [edge for edge in whole.edges_of(chosen) if edge.source in {node.id for node in graph.nodes}]
    further = [edge for edge in into if edge not in graph.edges]
    assert further
    figure = attribution_graph(graph, chosen=chosen, further=into)
    lines = [one for one in figure.data if one.mode == "lines"]
    assert sum(len(one.x) for one in lines) == 3 * (len(graph.edges) + len(further))
    said = {
        id: text
        for one in figure.data
        if one.customdata
        for id, text in zip(one.customdata, one.hovertext, strict=True)
    }
    for edge in into:
        assert f"into the chosen node {edge.weight:+.3g}" in said[edge.source]


def test_a_graph_of_circuit_tracer_is_drawn_without_cards(shelf: Shelf) -> None:
    text = (Path(__file__).parents[1] / "fixtures" / "graphs" / "graph.json").read_text()
    graph = wb.attribution.read_viewer_graph(text.replace('"clerp": ""', '"clerp": "<i>pets</i>"', 1))
    page = visit(shelf)
    page.session_state["published graph"] = graph
    page.session_state["published node"] = graph.nodes[0].id
    said = " ".join(one.value for one in quiet(page.run()).caption)
    assert "they show the file's labels and no cards" in said
    assert 'Output " dog" (p=0.600)' in said.replace("\\", "")
    assert "<i>" not in said
    part = graph.prune(0.5, 0.95)
    assert f"{len(part):,} of {len(graph):,} nodes" in said
    button(page, "Close").click().run()
    assert "published graph" not in quiet(page).session_state
    figure = attribution_graph(part)
    drawn = [id for one in figure.data if one.customdata for id in one.customdata]
    assert sorted(drawn) == [node.id for node in part.nodes]


def test_what_is_downloaded_opens_again(shelf: Shelf) -> None:
    from workbench.attribution import to_json

    graph = shelf.graph().prune(0.5)
    assert from_json(to_json(graph)).edges == graph.edges

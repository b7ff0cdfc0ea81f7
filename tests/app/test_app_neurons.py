"""Neurons have what latents have, without a browser: texts, a label, a note, a star, and a place in Read and Steer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny
import torch
from pages import button, ended, quiet, run_code, script, start, switch, visit, words

import workbench as wb

TEXT = "The dog ran to the river."
NEURON = "neurons.1.gate:7"
pytestmark = pytest.mark.usefixtures("tiny_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("neurons") / "m"
    tiny.build("llama").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from shared import neuron_index

    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    monkeypatch.setattr(neuron_index, "TOKENS", 400)
    return tmp_path


def test_a_neuron_is_labelled_and_found_by_its_label(folder: Path, shelf: Path) -> None:
    from caching import as_placed

    model = wb.load_model(folder)
    page = quiet(start(folder, feature=NEURON))
    button(page, "Read the texts").click().run()
    place = shelf / "neurons" / model.hash[:16] / "neurons.1.gate"
    page = quiet(ended(page, ("neuron index", str(place), as_placed(model))))
    label = page.text_input(key=f"label of {NEURON}")
    label.set_value("rivers *and* dogs").run()
    page.toggle(key=f"star of {NEURON}").set_value(True).run()
    index = wb.open_index(place, model)
    assert (index.feature(7).label, index.feature(7).starred) == ("rivers *and* dogs", True)

    seen = {}  # the strongest text is the one that plain hooks find
    for batch in wb.Corpus.load("stories").batches(model, 256, 16, 400):
        gate = model.capture(batch.tokens, [str(model.network.neuron_hook_point(1, "gate").name)], mask=batch.mask)
        values = next(iter(gate.values()))[..., 7].masked_fill(~batch.content, -math.inf)
        seen[float(values.max())] = int(batch.tokens.flatten()[values.argmax()])
    card = index.feature(7)
    assert card.top_examples[0].value == pytest.approx(max(seen), rel=1e-2)
    best = card.top_examples[0]
    assert best.tokens[best.peak] == model.token_texts(torch.tensor([seen[max(seen)]]))[0]
    assert "rivers *and* dogs" in run_code(script(page, "build_index"))

    page = quiet(start(folder))
    table = page.dataframe[0].value
    labels = dict(zip(table["neuron"], table["label"], strict=True))
    assert labels[NEURON] == "★ rivers *and* dogs"
    assert set(labels.values()) == {"", "★ rivers *and* dogs"}
    page = quiet(switch(page, "steer", feature=NEURON))
    assert any("rivers" in link.proto.label for link in page.get("page_link"))


def test_read_lists_the_neurons_that_write_the_answer(folder: Path, shelf: Path) -> None:
    page = quiet(visit("read", folder, {"read text": TEXT}))
    model = wb.load_model(folder)
    table = next(one.value for one in page.dataframe if "writes" in one.value)
    ids = model.to_tokens(TEXT)[0]
    logits = model(ids[None])[0, -1]
    whole = wb.lens.attribute_logit(model, TEXT, int(logits.argmax()), detail="neurons", top=10**6)
    layer = model.network.n_layers - 1
    mine = [one for one in whole.largest if one.kind == "neuron" and one.layer == layer][:8]
    assert list(table["neuron"]) == [one.label for one in mine]
    assert list(table["adds"]) == pytest.approx([one.value for one in mine])
    first = mine[0].label
    page.selectbox(key="removed part").set_value(first).run()
    button(page, "Take it out").click().run()
    assert f"random neurons of layer {layer}" in words(quiet(page)).replace("\\", "")

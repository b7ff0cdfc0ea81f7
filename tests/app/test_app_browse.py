"""The page Browse, without a browser: in this process, on the default model and on tiny ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import zoo
from pages import button, complaint, quiet, run_code, start, switch, texts, visit, words
from streamlit.testing.v1 import AppTest

import workbench as wb

DOG = "neurons.29.gate:808"

pytestmark = pytest.mark.real


def neurons(page: AppTest) -> list[str]:
    """The first column of the table."""
    return list(page.dataframe[0].value["neuron"])


def test_an_empty_search_lists_the_most_specialised_neurons() -> None:
    page = quiet(start())
    table = wb.decode_neurons(wb.load_model())
    best = int(table.excess[0].argmax())
    assert neurons(page)[0] == str(table.feature(best))
    excess = list(page.dataframe[0].value["excess"])
    assert excess == sorted(excess, reverse=True)


def test_search_shows_what_the_table_finds(model: wb.model.LanguageModel) -> None:
    page = start()
    page.text_input(key="query").set_value("water").run()
    hits = wb.decode_neurons(model).search("water")
    assert neurons(quiet(page)) == [str(hit.feature) for hit in hits]
    assert page.dataframe[0].value["tokens"][0][0] == "␣water"

    page.slider(key="layers").set_value((20, 29))
    page.number_input(key="max_rank").set_value(0)
    page.number_input(key="min_score").set_value(2.0).run()
    chosen = [hit for hit in hits if hit.layer >= 20 and hit.rank == 0 and hit.scores[0] >= 2.0]
    assert neurons(quiet(page)) == [str(hit.feature) for hit in chosen]


def test_an_example_is_one_click() -> None:
    page = start()
    button(page, "dog").click().run()
    assert page.text_input(key="query").value == "dog"
    assert neurons(quiet(page)) == [DOG]


def test_a_word_at_any_rank(model: wb.model.LanguageModel) -> None:
    page = start()
    page.text_input(key="query").set_value("California").run()
    assert "No neuron has" in words(quiet(page))
    assert "highest, at any rank" in words(page)
    best = [str(feature) for feature, _ in wb.neurons.neurons_writing(model, " California", "gate", top=50)]
    assert neurons(page) == best


def scores(table: wb.neurons.NeuronTable, model: wb.model.LanguageModel, word: str) -> torch.Tensor:
    """Every neuron's score for a token, `[layers, neurons]`, without `neurons_writing`."""
    row = model.network.module.get_output_embeddings().weight.detach()[model.to_tokens(word, start=False)[0, 0]]
    layers = range(model.network.n_layers)
    return torch.stack([model.network.neuron_directions(layer, table.weights) @ row for layer in layers])


@pytest.mark.parametrize("where", ["among a neuron's top tokens", "at any rank"])
def test_every_neuron_at_any_rank_passes_the_settings(model: wb.model.LanguageModel, where: str) -> None:
    of_dog = scores(wb.decode_neurons(model), model, " dog")[:4]
    least = round(float(torch.cat([of_dog.flatten().topk(30).values, (-of_dog).flatten().topk(30).values]).min()), 2)
    page = start()
    page.text_input(key="query").set_value("dog")
    page.segmented_control(key="where").set_value(where)
    page.slider(key="layers").set_value((0, 3))
    page.number_input(key="min_score").set_value(least).run()
    for sign, shown in ((1, "highest"), (-1, "lowest")):
        page.segmented_control(key="sign").set_value(sign).run()
        wanted = {
            f"neurons.{layer}.gate:{index}": sign * float(of_dog[layer, index])
            for layer, index in (sign * of_dog >= least).nonzero().tolist()
        }
        assert len(wanted) > 0
        assert len(neurons(quiet(page))) == min(len(wanted), 50)
        assert set(neurons(page)) <= set(wanted)
        table = dict(zip(neurons(page), page.dataframe[0].value["score"], strict=True))
        assert table == pytest.approx({name: wanted[name] for name in table}, abs=1e-3)
        assert f"“␣dog” {shown}" in words(page).replace("\\", "")
        printed = run_code(next(code.value for code in page.code if "neurons_writing" in code.value))
        assert [line.split(" ")[0] for line in printed.splitlines()] == neurons(page)
    page.number_input(key="min_score").set_value(50.0).run()
    assert not quiet(page).dataframe
    assert "no neuron scores the token" in words(page)


def test_what_can_not_be_combined_is_disabled_with_the_reason() -> None:
    page = start()
    page.text_input(key="query").set_value("California")
    page.number_input(key="max_rank").set_value(0).run()
    assert "No neuron has" in words(quiet(page))
    assert not page.dataframe, "neurons at any rank do not keep to a worst rank"
    page.segmented_control(key="where").set_value("at any rank").run()
    for widget in (page.segmented_control(key="match"), page.number_input(key="max_rank")):
        assert widget.disabled
        assert "Not “at any rank”" in widget.help
    assert not page.segmented_control(key="sign").disabled
    assert len(neurons(quiet(page))) == 50


def test_the_card_says_what_the_functions_say(model: wb.model.LanguageModel) -> None:
    quiet(start())  # makes the table that the card's number is read from
    page = quiet(start(feature=DOG))
    assert "Layer 29, neuron 808, gate" in [head.value for head in page.subheader]
    (metric,) = page.metric
    table = wb.decode_neurons(model)
    assert metric.value == f"{table.hit(table.row(wb.Feature.parse(DOG))).excess:.1f} σ"
    printed = run_code(page.code[-1].value if "nearest" in page.code[-1].value else page.code[0].value)
    assert "promoted ' dog'" in printed
    assert str(wb.neurons.nearest_neurons(model, wb.Feature.parse(DOG), 1)[0][0]) in printed


@pytest.mark.parametrize("query", ["", "water", "California"])
def test_the_copied_search_finds_the_same(query: str) -> None:
    page = start()
    page.text_input(key="query").set_value(query)
    page.slider(key="layers").set_value((5, 29)).run()
    printed = run_code(page.code[0].value)
    assert [line.split(" ")[0] for line in printed.splitlines()] == neurons(quiet(page))


@pytest.mark.parametrize(
    ("feature", "word"),
    [
        ("nonsense", "is not a feature"),
        ("neurons.30.gate:1", "no layer 30"),
        ("neurons.3.gate:1536", "1,536 features"),
        ("neurons.3.middle:1", "gate, up, post"),
        ("runs/my-sae:3", "not loaded"),
    ],
)
def test_a_bad_link(feature: str, word: str) -> None:
    assert word in complaint(start(feature=feature))
    assert word in complaint(visit("steer", feature=feature))


def test_a_model_that_is_not_there() -> None:
    page = start("/nowhere/at/all")
    assert "/nowhere/at/all" in complaint(page)
    page.session_state["source"] = "SmolLM2-135M-Instruct"
    assert neurons(quiet(page.run()))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_another_model_from_a_folder(name: str, tmp_path: Path, tiny_cache: Path) -> None:
    tiny.build(name).save_pretrained(tmp_path)
    tiny.tokenizer(chat=False).save_pretrained(tmp_path)
    page = start(str(tmp_path))
    assert neurons(quiet(page))
    page.text_input(key="query").set_value("dog").run()
    found = neurons(quiet(page))[0]
    switch(page, "steer", feature=found)
    page.slider(key="length").set_value(8)
    button(page, "Generate").click().run()
    plain, edited = texts(quiet(page))
    assert plain
    assert edited
    box = page.text_input(key="adder")
    box.set_value(box.placeholder.split()[-1].strip("()")).run()  # the example is a neuron of this model
    assert len(quiet(page).session_state["rows"]) == 2


def test_a_model_of_experts_has_no_neurons_to_browse(tiny_cache: Path, tmp_path: Path) -> None:
    zoo.build("mixtral").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    page = start(tmp_path)
    assert complaint(page).startswith("The MLP of layer 0 is a mixture of experts, so it has no neurons of its own")
    assert "MLPs without neurons of their own" in page.sidebar.caption[0].value
    steer = visit("steer", tmp_path)
    steer.text_input(key="adder").set_value("the").run()
    assert "is a mixture of experts" in complaint(steer)

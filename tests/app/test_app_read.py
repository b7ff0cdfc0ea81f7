"""The page Read, without a browser: the grid, the tokens, an open cell, what is taken out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from pages import button, complaint, ended, quiet, run_code, script, switch, visit, words
from streamlit.testing.v1 import AppTest

import workbench as wb

TEXT = "The dog ran to the river."
pytestmark = pytest.mark.usefixtures("tiny_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("read") / "m"
    tiny.build("llama").save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return place


def read(folder: Path, text: str = TEXT, **state: Any) -> AppTest:
    return visit("read", folder, {"read text": text, **state})


def drawn(page: AppTest) -> dict[str, Any]:
    """What the grid was given to draw."""
    waiting: list[Any] = [page._tree]
    while waiting:
        node = waiting.pop()
        waiting += getattr(node, "children", {}).values()
        proto = getattr(node, "proto", None)
        if getattr(proto, "component_name", "") == "workbench.grid":
            return json.loads(proto.json)
    raise AssertionError("there is no grid")


def test_the_grid_is_what_a_lens_reads(folder: Path) -> None:
    page = quiet(read(folder))
    model = wb.load_model(folder)
    grid, shown = wb.read_lens(model, TEXT), drawn(page)
    names = shown["words"]
    assert shown["rows"] == ["2", "1", "0"]
    seen = [[[names[word] for word in cell] for cell in line] for line in shown["tops"]]
    assert seen == [
        [[wb.core.text.visible(word) for word in cell[:3]] for cell in line] for line in reversed(grid.tokens)
    ]
    assert torch.allclose(torch.tensor(shown["shares"]), grid.probabilities[[2, 1, 0], :, :3], rtol=6e-3)
    assert torch.allclose(torch.tensor(shown["kl"]), grid.kl[[2, 1, 0]], atol=1e-3)
    first = wb.lens.read_doubt(model, TEXT).settled.tolist()
    assert [2 - row for row in shown["from"]] == first
    right = grid.ids[..., 0][:, :-1] == grid.prompt_ids[1:]
    assert torch.tensor(shown["right"])[:, :-1].bool().tolist() == right[[2, 1, 0]].tolist()
    page.segmented_control(key="read colour").set_value("entropy").run()
    shades = torch.tensor(drawn(quiet(page))["shades"])
    assert torch.allclose(shades, (grid.entropy[[2, 1, 0]] / 10).clamp(0, 1) * 0.7, atol=6e-3)
    page.selectbox(key="read at").set_value("heads").run()
    page.number_input(key="read layer").set_value(1).run()
    heads = wb.read_lens(model, TEXT, at="heads", layers=[1])
    assert drawn(quiet(page))["rows"] == [place.label for place in reversed(heads.places)]
    assert run_code(script(page, "read_lens")).startswith("1.0 ")


def test_an_open_cell_says_what_is_there(folder: Path) -> None:
    page = read(folder)
    model = wb.load_model(folder)
    place = 5
    page.selectbox(key="read row").set_value("1")
    page.selectbox(key="read position").set_value(place).run()
    answer = int(model(TEXT)[0, place].argmax())
    shares = wb.lens.attribute_logit(model, TEXT, answer, position=place, detail="heads").shares
    table = quiet(page).dataframe[0].value
    said = dict(zip(table["part"], table["adds"], strict=True))
    assert said == pytest.approx({one.label: one.value for one in shares if one.layer == 1 and one.kind != "rest"})
    pattern = wb.lens.read_attention(model, TEXT).head(1, 2)[place]
    looks = dict(zip(table["part"], table["looks"], strict=True))["head 1.2"]
    best = wb.core.text.visible(model.token_texts(model.to_tokens(TEXT)[0])[int(pattern.argmax())])
    assert looks[0] == f"{best} {float(pattern.max()):.0%}"
    page.selectbox(key="open head").set_value(2).run()
    scores = wb.lens.score_heads(model, length=32).induction[1, 2]
    assert next(one.value for one in quiet(page).metric if one.label == "Induction") == f"{float(scores):.0%}"


def test_what_is_taken_out_is_said_beside_random_others(folder: Path) -> None:
    page = read(folder)
    page.selectbox(key="removed part").set_value("head 2.1").run()
    button(page, "Take it out").click().run()
    model = wb.load_model(folder)
    plain = model(TEXT)[0, -1].log_softmax(-1)
    answer = int(plain.argmax())
    attention = model.network.module.model.layers[2].self_attn.o_proj

    def silence(_: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x, width = inputs[0].clone(), inputs[0].shape[-1] // 4
        x[..., width : 2 * width] = 0
        return (x,)

    handle = attention.register_forward_pre_hook(silence)
    without = model(TEXT)[0, -1].log_softmax(-1)
    handle.remove()
    said = words(quiet(page)).replace("\\", "")
    assert f"goes from {float(plain[answer].exp()):.1%} to {float(without[answer].exp()):.1%}" in said
    assert "3 random heads of layer 2" in said
    changes = [float(line.split()[-1]) for line in run_code(script(page, "removals = [")).splitlines()]
    assert changes[0] == pytest.approx(float(without[answer] - plain[answer]), abs=1e-4)
    assert len(changes) == 4


def test_a_text_is_read_under_the_edits_of_steer(folder: Path) -> None:
    edit = wb.Clamp("neurons.1.post:3", 8.0)
    from shared import edits

    row = edits.Row(0, wb.Clamp("neurons.1.post:3", 2.0))
    page = visit("steer", folder, {"read text": TEXT, "rows": [row]})
    next(one for one in page.slider if one.label == "Set to").set_value(8.0).run()
    page = switch(page, "read")
    model = wb.load_model(folder)
    plain = wb.read_lens(model, TEXT, interventions=())
    assert drawn(quiet(page))["kl"][0] == pytest.approx(plain.kl[-1].tolist(), abs=1e-3)
    page.toggle(key="read under edits").set_value(True)
    button(page, "Read").click().run()
    edited = wb.read_lens(model, TEXT, interventions=[edit])
    assert drawn(quiet(page))["entropy"][2] == pytest.approx(edited.entropy[0].tolist(), abs=1e-3)
    assert drawn(page)["entropy"][1] == pytest.approx(edited.entropy[1].tolist(), abs=1e-3)
    assert drawn(page)["entropy"][1] != pytest.approx(plain.entropy[1].tolist(), abs=1e-3)


def test_what_matters_is_looked_for(folder: Path) -> None:
    page = read(folder)
    button(page, "Look for it").click().run()
    model = wb.load_model(folder)
    ids = model.to_tokens(TEXT)[0].tolist()
    key = next(key for key in _tasks() if key[0] == "scan")
    page = quiet(ended(page, key))
    found = wb.scan(model, ids, int(model(TEXT)[0, -1].argmax()))
    said = words(page).replace("\\", "")
    assert all(one.sentence in said for one in found)
    assert len(run_code(script(page, "wb.scan")).splitlines()) == len(found)


def _tasks() -> dict[tuple[str, ...], Any]:
    import caching

    return caching._tasks()


def test_an_answer_is_traced_on_attribution(folder: Path) -> None:
    page = read(folder)
    page.selectbox(key="read position").set_value(7).run()
    button(page, "Trace this answer").click().run()
    assert not page.exception
    model = wb.load_model(folder)
    ids = model.to_tokens(TEXT)[0, :8]
    assert model.to_tokens(page.session_state["attributed prompt"])[0].tolist() == ids.tolist()
    token = page.session_state["attributed token"]
    assert not token or model.to_tokens(token, start=False)[0].tolist() == [int(model(ids[None])[0, -1].argmax())]


def test_what_cannot_be_read_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "empty" in complaint(read(folder, ""))
    assert "256" in complaint(read(folder, "dog " * 900))
    quiet(read(folder, "a"))
    chat = quiet(read(folder, **{"read mode": "Chat"}))
    assert len(drawn(chat)["tokens"]) > len(wb.load_model(folder).to_tokens(TEXT)[0])

    def refuse(*_: object) -> None:
        raise wb.lens.LensError("m has no lens: its logits are another's.")

    import caching

    monkeypatch.setattr("workbench.lens.readout.Readout.check", refuse)
    caching.let_go()
    assert complaint(read(folder)).startswith("m has no lens")


def test_a_long_text_is_drawn_in_stretches(folder: Path) -> None:
    page = quiet(read(folder, "The dog ran. " * 40))
    shown = drawn(page)
    assert len(shown["tokens"]) == 128
    page.selectbox(key="read stretch").set_value(128).run()
    shown = drawn(quiet(page))
    assert (shown["first"], len(shown["tokens"])) == (128, shown["chosen"][1] - 127)

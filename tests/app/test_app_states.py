"""The app on a codebook model, without a browser: the States page, and codes in Read and Steer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from pages import quiet, run_code, script, visit
from speaker import HEADS, HOW, MACHINE, speaker_model  # noqa: F401 (a fixture)

import workbench as wb


@pytest.fixture(scope="module")
def folder(speaker: wb.model.LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codebook model on disk."""
    from dataclasses import asdict

    made = wb.training.fine_tune(speaker, MACHINE, {HEADS: wb.Codebook(16, 20, groups=2, name="heads")}, **HOW)
    made.about["machine"] = asdict(MACHINE)
    path = tmp_path_factory.mktemp("models") / "small"
    wb.interventions.save_model(made, path)
    return path


def test_a_run_its_codes_and_what_forcing_does(folder: Path, tiny_cache: Path) -> None:
    page = quiet(visit("states", folder))
    walk = MACHINE.walk(1, 8, 0)[0].tolist()
    assert any(all(f"`{state:02d}`" in one.value for state in walk) for one in page.markdown)
    table = page.dataframe[0].value
    assert list(table["where"]) == [f"{HEADS}, head 0", f"{HEADS}, head 1"]
    model = wb.load_model(folder)
    seen = model.capture(MACHINE.write(torch.tensor([walk])), [HEADS])[HEADS].flatten(2)
    codes = model.splices[HEADS].encode(seen).indices[0, 2::2]  # type: ignore[attr-defined]
    assert [int(table["3"][head].split()[0]) for head in range(2)] == codes[3].tolist()
    assert page.metric[0].label == "Probability on the forced state's edges"
    page.selectbox(key="forced state").set_value(5).run()
    shown = float(quiet(page).metric[0].value.rstrip("%")) / 100
    printed = run_code(script(page, "force_state(model"))
    from workbench.synthetic import count_codes, force_state, next_states

    edits = force_state(model, MACHINE, [count_codes(model, MACHINE, written=n) for n in range(2)], 5, 8)
    found = next_states(model, MACHINE, torch.tensor([walk]), edits)[0]
    assert [int(line.split()[0]) for line in printed.splitlines()] == found.topk(12).indices.tolist()
    assert shown == pytest.approx(float(found[MACHINE.follows[5]].sum()), abs=6e-4)


def test_other_models_are_told_what_the_page_is_for(zoo, tmp_path: Path, tiny_cache: Path) -> None:
    import tiny

    tiny.build("llama").save_pretrained(tmp_path / "llama")
    tiny.tokenizer(chat=False).save_pretrained(tmp_path / "llama")
    page = quiet(visit("states", tmp_path / "llama"))
    assert "whose truth is known" in page.info[0].value


def test_codes_are_read_and_forced_like_any_feature(folder: Path, tiny_cache: Path) -> None:
    page = quiet(visit("read", folder))
    page.text_area(key="read text").set_value("0123").run()
    page.segmented_control(key="strip colour").set_value("features").run()
    page.button(key="read now").click().run()
    assert list(quiet(page).dataframe[0].value["token"][:2]) == ["0", "0"]
    steer = quiet(visit("steer", folder, feature="heads:23"))
    assert "Force for the least" in [box.value for box in steer.selectbox]
    browse = quiet(visit("browse", folder, feature="heads:23"))
    assert "heads, code 23" in [one.value for one in browse.subheader]


def test_codes_are_indexed_on_walks_of_the_machine(folder: Path, tiny_cache: Path) -> None:
    page = visit("browse", folder, feature="heads:23")
    assert page.selectbox(key="index corpus").value == "walks of its state machine"
    page.number_input(key="index tokens").set_value(1000).run()
    printed = script(quiet(page), "build_index")
    assert 'wb.synthetic.TokFSM(**model.about["machine"]).corpus()' in printed
    page.button(key="build index").click().run()
    for _ in range(100):
        if (folder / "dictionaries" / "0" / "index" / "data" / "index.json").exists():
            break
        time.sleep(0.2)
    index = wb.open_index(folder / "dictionaries" / "0" / "index")
    assert index.n_tokens >= 1000
    assert "heads, code 23" in [one.value for one in quiet(page.run()).subheader]


def test_a_model_that_lacks_the_words_begins_with_a_text_of_its_own(folder: Path, tiny_cache: Path) -> None:
    text = quiet(visit("read", folder)).text_area(key="read text").value
    assert text == "0" + wb.load_model(folder).generate("0", 24, temperature=1.0).text
    assert len(text) > 1

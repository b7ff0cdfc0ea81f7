"""The app's pages for dictionaries, without a browser: a tiny model, a tiny dictionary and its index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
import tiny
import torch
from annotated_types import Ge, Le
from local_hub import COMMIT, serving
from pages import button, complaint, ended, quiet, read_from, run_code, script, start, words
from pages import visit as visit_page
from streamlit.testing.v1 import AppTest

import workbench as wb
from workbench.dictionaries import Dictionary
from workbench.dictionaries.settings import Setting, Width
from workbench.index import open_index
from workbench.interventions.saved import to_json

POINT = "blocks.1.hook_resid_post"
TEXTS = [*tiny.TEXT.strip().splitlines(), "The dog and the cat saw New York.", "New ideas for New York."] * 4


class Shelf:
    """A tiny model's folder, and beside it dictionaries."""

    def __init__(self, root: Path):
        self.model_folder, self.dictionaries, self.runs = root / "model", root / "dictionaries", root / "runs"
        tiny.build("llama").save_pretrained(self.model_folder)
        tiny.tokenizer(chat=False).save_pretrained(self.model_folder)
        self.texts = root / "texts.txt"
        self.texts.write_text("\n\n".join(TEXTS))
        self.model = wb.load_model(str(self.model_folder))
        corpus = wb.Corpus.load(str(self.texts))
        for name, width in (("small", 24), ("other", 16), ("bare", 20)):
            sae = wb.TopKSAE(32, width, k=4, hook_point=POINT, name=name)
            sae.save(self.dictionaries / name)
            if name != "bare":
                wb.build_index(self.model, sae, corpus, self.dictionaries / name / "index")
        misfit = wb.TopKSAE(48, 8, k=2, hook_point="blocks.99.hook_resid_post", name="misfit")
        misfit.save(self.dictionaries / "misfit")
        (self.dictionaries / "broken").mkdir()
        (self.dictionaries / "broken" / "cfg.json").write_text("{")

    @property
    def index(self) -> wb.index.FeatureIndex:
        """The index of `small`."""
        return open_index(self.dictionaries / "small" / "index")


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def shelf(_made: Shelf, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """The model and dictionaries that the app finds."""
    monkeypatch.setenv("WORKBENCH_DICTIONARIES", str(_made.dictionaries))
    monkeypatch.setenv("WORKBENCH_RUNS", str(_made.runs))
    from shared import dictionaries

    monkeypatch.setattr(dictionaries.shipped, "HOME", _made.dictionaries / "none")
    return _made


def browse(shelf: Shelf, feature: str = "") -> AppTest:
    """A new session on Browse."""
    return start(shelf.model_folder, **({"feature": feature} if feature else {}))


def visit(shelf: Shelf, folder: str, feature: str = "") -> AppTest:
    """A new session on another page."""
    return visit_page(folder, shelf.model_folder, **({"feature": feature} if feature else {}))


def latents(page: AppTest) -> list[int]:
    """The first column of the table."""
    return list(page.dataframe[0].value["latent"])


# ---- Browse


def test_only_dictionaries_that_fit_are_offered(shelf: Shelf) -> None:
    page = quiet(browse(shelf))
    options = page.selectbox(key="dictionary").options
    assert [option.split(" · ")[0] for option in options[1:]] == ["bare", "other", "small"]


def test_a_search_shows_what_the_index_finds(shelf: Shelf) -> None:
    page = browse(shelf)
    page.selectbox(key="dictionary").set_value("small").run()
    assert latents(quiet(page)) == [hit.index for hit in shelf.index.search(unasked="sharpness", limit=200)]
    page.text_input(key="latent query").set_value("dog").run()
    hits = shelf.index.search("dog", limit=200)
    assert hits
    assert latents(quiet(page)) == [hit.index for hit in hits]
    printed = run_code(script(page, "index.search"))
    assert [int(line.split()[0]) for line in printed.splitlines()] == latents(page)


def test_a_regular_expression_has_precision_and_recall(shelf: Shelf) -> None:
    page = browse(shelf)
    page.selectbox(key="dictionary").set_value("small").run()
    page.segmented_control(key="latent mode").set_value("regular expression")
    page.text_input(key="latent query").set_value("New (York)").run()
    hits = shelf.index.search(regex="New (York)", limit=200)
    assert latents(quiet(page)) == [hit.index for hit in hits]
    assert list(page.dataframe[0].value["recall"]) == [hit.score.recall for hit in hits]
    page.text_input(key="latent query").set_value("New (York").run()
    assert "is no regular expression" in complaint(page)


def test_a_card_says_what_the_index_says(shelf: Shelf) -> None:
    latent = shelf.index.search(limit=1)[0].index
    page = quiet(browse(shelf, f"small:{latent}"))
    assert f"small, latent {latent}" in [head.value for head in page.subheader]
    assert page.selectbox(key="dictionary").value == "small"
    card = shelf.index.feature(latent)
    assert page.metric[0].value == f"{card.density:.2%}"
    printed = run_code(script(page, "index.feature"))
    assert str(round(card.top_examples[0].value, 2)) in printed


def test_what_people_write_is_on_disk_at_once(shelf: Shelf) -> None:
    page = browse(shelf, "small:3")
    page.text_input(key="label of small:3").set_value("dogs <b>").run()
    page.text_input(key="note of small:3").set_value("seen in stories").run()
    page.toggle(key="star of small:3").set_value(True).run()
    card = shelf.index.feature(3)
    assert (card.label, card.note, card.starred) == ("dogs <b>", "seen in stories", True)
    other = browse(shelf, "small:3")
    assert quiet(other).text_input(key="label of small:3").value == "dogs <b>"
    shelf.index.label(3, "cats")  # somebody else
    assert other.run().text_input(key="label of small:3").value == "cats"
    assert latents(other)[0] is not None
    other.toggle(key="latent starred").set_value(True).run()
    assert latents(quiet(other)) == [3]
    for change in (shelf.index.label, shelf.index.note):
        change(3, "")
    shelf.index.star(3, False)


def test_labels_leave_and_arrive_as_a_file(shelf: Shelf) -> None:
    from browse import labels

    shelf.index.label(3, "dogs <b>")
    for ending in labels.ENDINGS:
        data = labels.written(shelf.index, ending)
        shelf.index.label(3, "")
        page = browse(shelf, "small:3")
        page.file_uploader(key="labels-0").set_value((f"mine.{ending}", data, "")).run()
        assert quiet(page).file_uploader(key="labels-1").value is None
        assert shelf.index.feature(3).label == "dogs <b>"
    page.file_uploader(key="labels-1").set_value(("mine.csv", b"feature,lable\n3,cats\n", "")).run()
    assert complaint(page).startswith("mine.csv is not a file of labels: it has a column 'lable'")
    shelf.index.label(3, "")


@pytest.mark.parametrize(
    ("feature", "word"),
    [("small:24", "24 features"), ("misfit:1", "blocks.99"), ("nothing:1", "not loaded"), ("broken:0", "damaged")],
)
def test_a_bad_link_to_a_latent(shelf: Shelf, feature: str, word: str) -> None:
    assert word in complaint(browse(shelf, feature))
    assert word in complaint(visit(shelf, "steer", feature))


def test_a_folder_typed_in(shelf: Shelf, tmp_path: Path) -> None:
    page = browse(shelf)
    page.text_input(key="typed folder").set_value(str(tmp_path / "nothing")).run()
    assert "There is no folder" in complaint(page)
    wb.TopKSAE(32, 12, k=2, hook_point=POINT).save(tmp_path / "mine")
    page.text_input(key="typed folder").set_value(str(tmp_path / "mine")).run()
    assert page.selectbox(key="dictionary").value == str(tmp_path / "mine")
    assert "has no index yet" in words(quiet(page))


def test_a_dictionary_of_the_hub_is_opened_by_its_name(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shared import snippets

    name = "someone/dictionaries/layer_1"
    sae = wb.TopKSAE(32, 12, k=2, hook_point=POINT)
    sae.provenance["model_name"] = "gpt2-small"
    sae.save(tmp_path / "hub" / "layer_1")
    with serving(tmp_path / "cache", monkeypatch) as hub:
        hub.repositories["someone/dictionaries"] = tmp_path / "hub"
        page = browse(shelf)
        page.text_input(key="typed folder").set_value("someone/dictionaries/layer_2").run()
        page = ended(page, ("open", "someone/dictionaries/layer_2"))
        assert complaint(page) == f"The hub has no {name[:-1]}2; someone/dictionaries holds layer_1."
        page.text_input(key="typed folder").set_value(name).run()
        page = quiet(ended(page, ("open", name)))
        assert page.selectbox(key="dictionary").value == name
        (opened,) = [one.value.replace("\\", "") for one in page.success]
        assert opened == (
            "Opened dictionaries/layer_1: a dictionary in the format of SAELens, topk, 12 latents, at "
            f"{POINT}, made for gpt2-small."
        )
        assert "has no index yet" in words(page)
        folder = hub.snapshot("someone/dictionaries") / "layer_1"
        assert snippets.place(str(folder)) == f"hf:{name}@{COMMIT}"
        assert script(page, "load_dictionary").count(f"hf:{name}@{COMMIT}") == 1
        read_from(page, "index corpus", shelf.texts)
        page.number_input(key="index tokens").set_value(1000).run()
        button(page, "Build the index").click().run()
        page = quiet(ended(page, ("index", str(folder))))
        assert latents(page)
        assert {one.name for one in folder.iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_a_dictionary_of_several_hook_points_is_typed_in(shelf: Shelf, tmp_path: Path) -> None:
    page = browse(shelf)
    for layers, reads in ((3, "mlp.hook_in"), (4, "mlp.hook_in")):
        made = wb.dictionaries.CrossLayerTranscoder(32 * layers, 12, layers=layers, name=f"clt{layers}")
        made.reads = " + ".join(f"blocks.{layer}.{reads}" for layer in range(layers))
        made.writes = " + ".join(f"blocks.{layer}.hook_mlp_out" for layer in range(layers))
        made.save(tmp_path / f"clt{layers}")
    page.text_input(key="typed folder").set_value(str(tmp_path / "clt4")).run()
    assert "needs the hook point blocks.3.mlp.hook_in, which" in complaint(page)
    page.text_input(key="typed folder").set_value(str(tmp_path / "clt3")).run()
    assert page.selectbox(key="dictionary").value == "clt3"
    shown = words(quiet(page)) + " ".join(page.selectbox(key="dictionary").options)
    assert "blocks.0.mlp.hook_in … blocks.2.mlp.hook_in (3) → blocks.0.hook_mlp_out … blocks.2" in shown


def test_an_index_is_built_from_the_page(shelf: Shelf) -> None:
    page = browse(shelf)
    page.selectbox(key="dictionary").set_value("bare").run()
    read_from(page, "index corpus", shelf.texts)
    page.number_input(key="index tokens").set_value(1000).run()
    button(page, "Build the index").click().run()
    folder = shelf.dictionaries / "bare"
    page = ended(page, ("index", str(folder)))
    assert latents(quiet(page)) == [
        hit.index for hit in open_index(folder / "index").search(unasked="sharpness", limit=200)
    ]


# ---- Read


def test_reading_shows_which_features_are_active(shelf: Shelf) -> None:
    from workbench.measures.firing import active_features

    page = visit_page("read", shelf.model_folder, {"strip colour": "features", "read text": "The dog <b>ran</b>"})
    page.multiselect(key="inspected with").set_value(["small", "other"]).run()
    saes = [wb.load_dictionary(shelf.dictionaries / name) for name in ("small", "other")]
    found = active_features(shelf.model, saes, "The dog <b>ran</b>", top=8)
    frame = quiet(page).dataframe[0].value
    assert list(frame["feature"]) == [str(feature) for token in found for feature in token.features]
    assert list(frame["value"]) == pytest.approx([value for token in found for value in token.values], rel=1e-4)
    printed = run_code(script(page, "active_features"))
    assert len(printed.splitlines()) == len(found)
    page.selectbox(key="read row").set_value("1").run()
    frame = quiet(page).dataframe[2].value  # of the open cell, behind the parts of its layer
    saes = [wb.load_dictionary(shelf.dictionaries / name) for name in ("bare", "other", "small")]
    last = active_features(shelf.model, saes, "The dog <b>ran</b>", top=8)[-1]
    assert list(frame["feature"]) == [str(feature) for feature in last.features]


def test_features_on_a_text_are_those_of_its_activations(shelf: Shelf) -> None:
    from workbench.measures.firing import active_features

    sae = wb.load_dictionary(shelf.dictionaries / "small")
    tokens = shelf.model.to_tokens("The dog ran")
    codes = sae.encode(shelf.model.capture(tokens, [POINT])[POINT][0]).dense()
    fired = active_features(shelf.model, [sae], "The dog ran", top=24)
    assert not fired[0].features  # the first position, where an attention sink stands
    for row, token in zip(codes[1:], fired[1:], strict=True):
        values = torch.zeros(24)
        values[[feature.index for feature in token.features]] = torch.tensor(token.values)
        assert torch.allclose(values, row, atol=1e-5)


# ---- Steer


def test_steering_mixes_neurons_and_latents(shelf: Shelf) -> None:
    page = visit(shelf, "steer", "small:3")
    page.text_input(key="adder").set_value("neurons.1.up:5").run()
    page.text_input(key="adder").set_value("dog").run()
    hit = shelf.index.search("dog", limit=1)[0]
    next(one for one in page.button if one.key == f"add small:{hit.index}").click().run()
    page.slider(key="length").set_value(8)
    button(page, "Generate").click().run()
    request = quiet(page).session_state["answer"].request
    assert [str(one.feature) for one in request.interventions] == ["small:3", "neurons.1.up:5", f"small:{hit.index}"]
    both = page.session_state["answer"].comparison
    printed = run_code(script(page, "wb.compare"))
    assert both.edited.text.splitlines()[0] in printed

    from shared import edits
    from steer import storage

    said = to_json(shelf.model, request.interventions)
    assert [one["name"] for one in json.loads(said)["dictionaries"]] == ["small"]
    back = storage.read(shelf.model, said.encode())
    assert back == list(request.interventions)
    assert back[0].feature.source is request.interventions[0].feature.source
    strength = wb.Clamp.arguments[0]
    declared = edits.slider_of(shelf.model, wb.Feature.parse("neurons.1.up:5"), strength)
    assert declared == edits.Slider(20.0, 40.0, 0.5)
    assert edits.slider_of(shelf.model, back[0].feature, strength) != declared
    with pytest.raises(wb.dictionaries.DictionaryError, match="not loaded"):
        storage.read(shelf.model, said.replace('"small"', '"gone"').encode())


# ---- Train


def test_a_training_is_begun_stopped_and_gone_on_with(shelf: Shelf) -> None:
    from train import runs

    page = visit(shelf, "train")
    read_from(page, "training corpus", shelf.texts)
    page.number_input(key="training topk width").set_value(16)
    page.number_input(key="training topk k").set_value(2)
    page.number_input(key="training tokens").set_value(40_000)
    page.number_input(key="training batch").set_value(16)
    page.text_input(key="training name").set_value("mine").run()
    button(quiet(page), "Train").click().run()
    assert runs.current().name == "mine"
    other = visit(shelf, "train")  # all sessions see it
    assert other.selectbox(key="run").value == "mine"
    other.selectbox(key="run").set_value("a new training").run()
    assert button(other, "Train").disabled
    button(page, "Stop").click().run()
    page = ended(page, runs.KEY)
    assert "has stopped" in page.info[0].value
    with pytest.raises(ValueError, match="another training called mine"):
        runs.begin(shelf.model, runs.TrainingRequest("mine", "topk", POINT, POINT, "stories", 5, {"width": 8}))
    button(quiet(page), "Go on").click().run()
    page = ended(page, runs.KEY)
    assert "trained" in quiet(page).success[0].value
    made = wb.load_dictionary(shelf.runs / "mine")
    assert (made.n_features, made.reads) == (16, POINT)
    assert page.metric[0].value == f"{runs.all_runs()[0].history[-1]['tokens']:,.0f}"


@pytest.mark.parametrize("word", ["topk", "jumprelu", "standard", "batchtopk", "topk_transcoder", "skip_transcoder"])
def test_every_kind_has_a_form(shelf: Shelf, word: str) -> None:
    page = visit(shelf, "train")
    page.selectbox(key="kind to train").set_value(word).run()
    code = script(quiet(page), "wb.train(")
    scope: dict = {"wb": wb}
    exec(next(line for line in code.splitlines() if line.startswith("dictionary =")), scope)
    assert scope["dictionary"].kind == word


def test_a_new_kind_brings_its_own_form(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dictionary, "kinds", dict(Dictionary.kinds))

    class HalvedSAE(wb.TopKSAE):
        kind = "halved"

        def __init__(
            self,
            d_in: int,
            width: Width,
            share: Annotated[float, Ge(0), Le(1), Setting("Share that is halved", "Of the latents.")],
            rounds: Annotated[int, Setting("Rounds of halving")] = 3,
            *,
            hook_point: str = "",
        ):
            super().__init__(d_in, width, 4, hook_point=hook_point)
            self.share, self.rounds = share, rounds

    page = visit(shelf, "train")
    page.selectbox(key="kind to train").set_value(HalvedSAE.kind).run()
    boxes = {box.label: box for box in quiet(page).number_input}
    assert list(boxes)[:3] == ["Latents", "Share that is halved", "Rounds of halving"]
    share = boxes["Share that is halved"]
    assert (share.min, share.max, share.value, share.help) == (0, 1, 1, "Of the latents.")
    assert boxes["Rounds of halving"].value == 3
    share.set_value(0.25).run()
    assert "width=4608, share=0.25, rounds=3)" in script(quiet(page), "wb.dictionaries.HalvedSAE(d_in=")


@pytest.mark.parametrize("name", ["../out", ".hidden", "a b"])
def test_a_bad_name_for_a_training(shelf: Shelf, name: str) -> None:
    page = visit(shelf, "train")
    page.text_input(key="training name").set_value(name).run()
    button(page, "Train").click().run()
    assert "folder's name" in complaint(page)


def test_settings_that_cannot_be_leave_no_training_behind(shelf: Shelf) -> None:
    page = visit(shelf, "train")
    page.number_input(key="training topk width").set_value(16)
    page.number_input(key="training topk k").set_value(17)
    page.text_input(key="training name").set_value("wide").run()
    button(page, "Train").click().run()
    assert "k is a whole number from 1 to the width" in complaint(page)
    assert not (shelf.runs / "wide").exists()


def test_texts_of_a_table(shelf: Shelf, tmp_path: Path) -> None:
    from train import runs

    table = tmp_path / "reviews.CSV"
    table.write_text("id;review\n" + '1;"The dog ran;\nthe cat sat."\n' * 20)
    page = visit(shelf, "train")
    read_from(page, "training corpus", table)
    page.number_input(key="training tokens").set_value(1000)
    page.text_input(key="training name").set_value("from-a-table").run()
    button(page, "Train").click().run()
    quiet(ended(page, runs.KEY))
    note = json.loads((shelf.runs / "from-a-table" / "cfg.json").read_text())
    assert wb.Corpus.load(table).hash in json.dumps(note)


def test_texts_that_are_not_there(shelf: Shelf) -> None:
    from train import runs

    page = visit(shelf, "train")
    read_from(page, "training corpus", "/nowhere.txt")
    page.text_input(key="training name").set_value("nowhere").run()
    button(page, "Train").click().run()
    assert "/nowhere.txt" in complaint(ended(page, runs.KEY))


# ---- Compare


def test_the_first_pair_is_of_one_kind_and_place() -> None:
    from compare.page import _first_pair
    from shared.dictionaries import Known

    def known(name: str, kind: str, place: str) -> Known:
        return Known(name, name, kind, place, place, 8, "")

    coder, other = known("a", "transcoder", "x"), known("b", "topk", "x")
    deep, twin = known("c", "topk", "y"), known("d", "topk", "y")
    assert _first_pair([coder, other, deep, twin]) == ("c", "d")
    assert _first_pair([deep, coder, other]) == ("a", "b")
    assert _first_pair([coder, deep]) == ("a", "c")


def test_two_dictionaries_are_measured_side_by_side(shelf: Shelf) -> None:
    page = visit(shelf, "compare")
    page.selectbox(key="compared first").set_value("small")
    page.selectbox(key="compared second").set_value("other")
    read_from(page, "compared corpus", shelf.texts)
    page.number_input(key="compared tokens").set_value(256).run()
    button(page, "Measure").click().run()
    import caching

    (key,) = [one for one in caching._tasks() if one[0] == "fidelity" and str(shelf.dictionaries / "small") in one]
    page = ended(page, key)
    saes = [wb.load_dictionary(shelf.dictionaries / name) for name in ("small", "other")]
    alone = wb.measures.measure_fidelities(shelf.model, saes, wb.Corpus.load(str(shelf.texts)), 256)
    frame = quiet(page).dataframe[0].value
    assert list(frame["value 0"])[:2] == [f"{alone[0].loss_recovered:.4g}", f"{alone[0].fvu:.4g}"]
    assert list(frame["value 1"])[:2] == [f"{alone[1].loss_recovered:.4g}", f"{alone[1].fvu:.4g}"]
    printed = run_code(script(page, "measure_fidelities"))
    assert f"{alone[0].fvu:9.4f}" in printed


def test_an_export_is_browsed_without_its_dictionary(shelf: Shelf, tmp_path: Path) -> None:
    """What the export does not say is not known on the page, and its features can't be used as edits."""
    export, ids = tmp_path / "export", {"modelId": "other", "layer": "6-res", "index": "7"}
    for part, row in (
        ("features", {"frac_nonzero": None, "maxActApprox": 9.5, "pos_str": [" dog"]}),
        ("activations", {"tokens": ["a", " dog"], "values": [0.0, 2.0]}),
        ("explanations", {"description": "pets <b>", "typeName": "auto"}),
    ):
        (export / part).mkdir(parents=True)
        (export / part / "batch-0.jsonl").write_text(json.dumps(ids | row))
    page = browse(shelf)
    page.text_input(key="typed folder").set_value(str(export)).run()
    page = quiet(ended(page, ("open", str(export))))
    assert page.session_state["box to open a dictionary"] is False
    name = "Neuronpedia/other/6-res"
    assert page.selectbox(key="dictionary").value == name
    assert page.success[0].value.replace("\\", "") == (
        "Opened 6-res: an export of Neuronpedia with 1 latent, without their dictionary, made for other."
    )
    assert latents(page) == [7]
    assert (page.dataframe[0].value["label"][0], list(page.dataframe[0].value["density"])) == ("pets <b>", [None])
    page.text_input(key="latent query").set_value("pets").run()
    assert latents(quiet(page)) == [7]
    page.segmented_control(key="latent mode").set_value("regular expression").run()
    assert "holds no corpus for regular expressions" in complaint(page)
    page.segmented_control(key="latent mode").set_value("words").run()
    page.session_state["open"] = f"{name}:7"
    shown = words(quiet(page.run()))
    assert [(one.label, one.value) for one in page.metric] == [
        ("Active on", "not known"),
        ("Highest", "9.5"),
        ("Mean", "not known"),
    ]
    assert page.text_input(key=f"label of {name}:7").value == "pets <b>"
    assert "Not known here, as the export does not hold it: densities" in " ".join(one.value for one in page.caption)
    assert "Neuronpedia, auto" in " ".join(one.value for one in page.caption)
    assert "Strongest examples of the export" in shown
    assert "Steer this latent" not in [one.label for one in page.button]
    assert "'pets <b>' Neuronpedia, auto" in run_code(script(page, "index.feature"))
    assert "not loaded" in complaint(visit(shelf, "steer", f"{name}:7"))

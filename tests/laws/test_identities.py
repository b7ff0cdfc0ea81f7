"""One identity for each thing, over all that decides what it does, compared wherever something refers to it."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers_zoo
import torch
import zoo
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, Gemma3Config, Gemma3TextConfig, LlamaConfig, MistralConfig

import workbench as wb
from workbench.core.settings import difference
from workbench.dictionaries import Feature, protocol
from workbench.dictionaries.origin import is_of_another
from workbench.harvest import Harvest, HarvestError, Store, checksums
from workbench.index import FeatureIndexError
from workbench.interventions.saved import from_json, to_json
from workbench.model.identity import plain_identity, settings_of, tokenizer_hash
from workbench.surgery import SurgeryError

pytestmark = pytest.mark.usefixtures("tiny_cache")

POINT = "blocks.1.hook_resid_post"
TEXTS = [f"Story {number}. The dog ran to the river and slept." for number in range(12)]
CORPUS = wb.Corpus(TEXTS, "twelve")
TOKENS = torch.arange(12).view(1, 12)


def fresh(**changes: Any) -> wb.model.LanguageModel:
    return wb.load_model(tiny.build("llama", **changes), tokenizer=tiny.tokenizer())


@pytest.fixture(scope="module")
def child(_tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved child."""
    made = wb.bake(fresh(), [wb.Clamp("neurons.0.post:3", 2.0)])
    made.certify(wb.Corpus([tiny.TEXT]), 60)
    assert made.certificate is not None
    assert made.certificate.exact
    folder = tmp_path_factory.mktemp("child") / "child"
    made.save_pretrained(folder)
    return folder


def changed(file: Path, change: Callable[[Any], Any]) -> None:
    """Change the content of a JSON file."""
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


ALTERED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "norm": ("config.json", lambda one: one | {"rms_norm_eps": 0.1}),
    "rotation": ("config.json", lambda one: one | {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}),
    "activation": ("config.json", lambda one: one | {"hidden_act": "gelu"}),
    "ends": ("generation_config.json", lambda one: one | {"eos_token_id": 7}),
    "template": ("tokenizer_config.json", lambda one: one | {"eos_token": "the"}),
    "merges": ("tokenizer.json", lambda one: one | {"model": one["model"] | {"merges": one["model"]["merges"][::-1]}}),
    "edits": ("interventions.json", lambda one: one),
    "certificate": ("certificate.json", lambda one: one | {"perplexity_after": 1.0}),
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_child_is_what_was_saved_or_is_refused(child: Path, name: str, tmp_path: Path) -> None:
    file, change = ALTERED[name]
    shutil.copytree(child, tmp_path / "child")
    if not (tmp_path / "child" / file).exists():
        (tmp_path / "child" / file).write_text("{}")
    changed(tmp_path / "child" / file, change)
    with pytest.raises(SurgeryError, match=f"is not what was saved there .*{file}"):
        wb.surgery.open_child(tmp_path / "child", fresh())


def test_a_child_of_an_older_version_opens_and_says_what_is_not_known(
    child: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = wb.surgery.open_child(child, fresh())
    assert not caplog.records
    assert wb.load_model(child).hash == opened.model.hash
    shutil.copytree(child, tmp_path / "child")
    parent = fresh()

    def older(note: Any) -> Any:
        step = note["history"][0] | {"parent": {"name": "x", "hash": parent.weights_hash}}
        step |= {"hash": note["weights_hash"]}
        old = {name: value for name, value in note.items() if name not in ("files", "weights_hash", "sha256")}
        return old | {"format": 2, "hash": note["weights_hash"], "history": [step]}

    changed(tmp_path / "child" / "surgery.json", older)
    again = wb.surgery.open_child(tmp_path / "child", parent)
    assert "no hashes of its configuration and tokenizer" in caplog.text
    assert again.model.hash == opened.model.hash
    changed(tmp_path / "child" / "surgery.json", lambda note: note | {"format": 3})  # and so it has lost them
    with pytest.raises(SurgeryError, match="lacks the hashes"):
        wb.surgery.open_child(tmp_path / "child", parent)


def test_a_models_identity_covers_what_decides() -> None:
    model = fresh()
    assert fresh().hash == model.hash == model.plain_hash != model.weights_hash
    for changes in ({"rms_norm_eps": 0.1}, {"hidden_act": "gelu"}, {"rope_parameters": {"rope_theta": 5.0}}):
        other = fresh(**changes)
        assert other.weights_hash == model.weights_hash, changes
        assert other.hash != model.hash, changes
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{{ messages }}"
    others = [tokenizer, tokenizers_zoo.build("bytes"), None]
    hashes = {wb.load_model(tiny.build("llama"), tokenizer=one).hash for one in others}
    assert len(hashes | {model.hash}) == 4
    ends = tiny.build("llama")
    ends.generation_config.eos_token_id = 9  # type: ignore[union-attr]
    assert wb.load_model(ends, tokenizer=tiny.tokenizer()).hash != model.hash
    named = tiny.build("llama")
    named.config._name_or_path, named.config.use_cache = "elsewhere", False
    assert wb.load_model(named, tokenizer=tiny.tokenizer()).hash == model.hash
    assert model.is_named(model.hash)
    assert model.is_named(model.weights_hash)
    assert not model.is_named(fresh(rms_norm_eps=0.1).hash)


def test_a_setting_that_a_version_adds_at_its_default_leaves_the_hash() -> None:
    class Newer(LlamaConfig):
        """As another version of transformers may have it."""

        gained: float = 0.5

    class Text(Gemma3TextConfig):
        gained: float = 0.5

    def hash(kind: Any, **changes: Any) -> str:
        return plain_identity("weights", kind(hidden_size=32, **changes), [0], None)

    assert hash(Newer) == hash(LlamaConfig) != hash(Newer, gained=0.25)
    changes = [{"rms_norm_eps": 0.1}, {"hidden_size": 64}, {"tie_word_embeddings": True}, {"hidden_act": "gelu"}]
    changes += [{"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, {"attention_bias": True}]
    several = [plain_identity("weights", Newer(**{"hidden_size": 32} | one), [0], None) for one in changes]
    assert len({hash(Newer), hash(MistralConfig), *several}) == 8
    untied = settings_of(Gemma3TextConfig(tie_word_embeddings=False))
    assert untied["tie_word_embeddings"] is None, "the default is True"
    whole, newer, other = (Gemma3Config(text_config=one) for one in (Gemma3TextConfig(), Text(), Text(gained=0.25)))
    assert settings_of(whole) == settings_of(newer) != settings_of(other)


def test_settings_are_the_same_after_saving(tmp_path: Path) -> None:
    for name in zoo.ZOO:
        config: Any = zoo.build(name).config
        config.save_pretrained(tmp_path / name)
        assert settings_of(AutoConfig.from_pretrained(tmp_path / name)) == settings_of(config), name


def test_hashes_are_remembered_and_follow_what_is_changed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sae, twin = fresh(), trained(), trained()
    seen: list[int] = []
    plain = protocol.fingerprint
    monkeypatch.setattr(protocol, "fingerprint", lambda tensors: seen.append(1) or plain(tensors))
    model.splices = {POINT: sae}
    before = model.hash
    assert (model.hash, len(seen)) == (before, 1)
    assert all(sae.feature(3) == twin.feature(3) for _ in range(3))
    assert len(seen) == 2
    with torch.inference_mode():
        sae.W_dec[3, 4] += 1
    changed = model.hash
    assert changed != before
    assert sae.feature(3) != twin.feature(3)
    sae.half().float()
    with torch.no_grad():
        sae.W_dec[3, 4] -= 1
    assert model.hash not in (before, changed)
    assert sae.tensors_hash == plain(sae.tensors())
    model.splices = {POINT: trained()}
    assert model.hash == before


def test_a_tokenizers_hash_is_remembered_while_it_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    first = tokenizer_hash(tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "get_vocab", lambda _: pytest.fail("it is taken anew"))
        assert tokenizer_hash(tokenizer) == first
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_hash(tokenizer) != first
    model = wb.load_model(tiny.build("llama"), tokenizer=tokenizer)
    assert wb.load_model(tiny.build("llama"), tokenizer=tokenizer).hash == model.hash != fresh().hash
    model.tokenizer = tiny.tokenizer()
    assert model.hash == fresh().hash


@pytest.mark.parametrize("name", list(tokenizers_zoo.KINDS)[::3])
def test_a_tokenizer_keeps_its_hash_on_disk_and_in_use(name: str, tmp_path: Path) -> None:
    tokenizer = tokenizers_zoo.build(name)
    hash = tokenizer_hash(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    tokenizer(["a", "b c d"], truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == hash == tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path))


def trained(k: int = 4, **more: Any) -> wb.TopKSAE:
    return wb.TopKSAE(32, 24, k, hook_point=POINT, **more)


def test_a_dictionarys_identity_covers_what_decides(tmp_path: Path) -> None:
    one = trained()
    assert trained(auxiliary=0.5).hash == one.hash != one.tensors_hash
    elsewhere = wb.TopKSAE(32, 24, 4, hook_point="blocks.0.hook_resid_post")
    assert len({one.hash, trained(5).hash, elsewhere.hash}) == 3
    assert {one.tensors_hash} == {trained(5).tensors_hash, elsewhere.tensors_hash}
    books = [wb.Codebook(8, 6, k=2, groups=2, combine=how) for how in ("sum", "mean")]
    assert books[0].hash != books[1].hash
    one.save(tmp_path / "d")
    assert wb.load_dictionary(tmp_path / "d").hash == one.hash
    config = json.loads((tmp_path / "d" / "cfg.json").read_text())
    config["k"] = config["workbench"]["settings"]["k"] = 16
    (tmp_path / "d" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(wb.WorkbenchError, match=r"its cfg\.json was altered after it was saved"):
        wb.load_dictionary(tmp_path / "d")
    del config["workbench"]["settings_sha256"]  # as older versions wrote it
    (tmp_path / "d" / "cfg.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "d" / "sae_weights.safetensors")
    save_file(weights, tmp_path / "d" / "sae_weights.safetensors")
    other = wb.load_dictionary(tmp_path / "d")
    assert other.hash != one.hash
    assert other.is_named(other.hash)
    assert not other.is_named(one.hash)


def test_an_index_belongs_to_the_k_that_it_was_built_with(tmp_path: Path) -> None:
    model, one, other = fresh(), trained(), trained(5)
    index = wb.build_index(model, one, CORPUS, tmp_path / "index")
    index.label(3, "a word")
    index.export_labels(tmp_path / "labels.json")
    for wrong in ((model, other), (fresh(rms_norm_eps=0.1), one)):
        with pytest.raises(FeatureIndexError, match="whose weights are the same and whose settings"):
            wb.open_index(tmp_path / "index", *wrong)
    with pytest.raises(FeatureIndexError, match="labels for another dictionary"):
        wb.build_index(model, other, CORPUS, tmp_path / "index")
    again = wb.build_index(model, other, CORPUS, tmp_path / "other")
    with pytest.raises(FeatureIndexError, match="labels for another dictionary"):
        again.import_labels(tmp_path / "labels.json")
    text = to_json(model, [wb.Clamp(one.feature(3), 2.0)])
    with pytest.raises(wb.WorkbenchError, match="made with topk of the hash"):
        from_json(model, text, [other])


def test_what_older_versions_recorded_is_known(tmp_path: Path) -> None:
    model, one = fresh(), trained()
    index = wb.build_index(model, one, CORPUS, tmp_path / "index")
    text = to_json(model, [wb.Clamp(one.feature(3), 2.0)])
    store = Store.write(Harvest(model, CORPUS, POINT, context=16, batch=4), tmp_path / "store")

    with pytest.raises(HarvestError, match="its model_hash is"):
        Store.write(Harvest(fresh(rms_norm_eps=0.1), CORPUS, POINT, context=16, batch=4), store.folder)

    def older(note: Any) -> Any:
        note["harvest"]["model_hash"] = note["harvest"].pop("former_hash")
        if "dictionary" in note:
            note["dictionary"]["hash"] = note["dictionary"].pop("former_hash")
        note.pop("checksums", None)
        return note

    changed(tmp_path / "index" / "data" / "index.json", older)
    changed(tmp_path / "store" / "progress.json", older)
    wb.build_index(model, one, CORPUS, tmp_path / "rebuilt").label(5, "another word")
    for name in ("labels.json", "labels.csv"):
        wb.open_index(tmp_path / "rebuilt").export_labels(tmp_path / name)
        assert wb.open_index(tmp_path / "index", model, one).import_labels(tmp_path / name) == 1
        with pytest.raises(FeatureIndexError, match="labels for another dictionary"):
            wb.open_index(tmp_path / "index").import_labels(tmp_path / name)
    wb.open_index(tmp_path / "index", model, one).label(3, "a word")
    before = (tmp_path / "index" / "data" / "index.json").read_text()
    again = wb.build_index(model, one, CORPUS, tmp_path / "index")
    assert (tmp_path / "index" / "data" / "index.json").read_text() == before, "built anew"
    assert again.feature(3).label == "a word"
    assert len(index) == len(again)
    stored = Store.write(Harvest(model, CORPUS, POINT, context=16, batch=4), tmp_path / "store")
    assert len(stored) == len(store)
    text = text.replace(model.hash, model.weights_hash).replace(one.hash, one.tensors_hash)
    assert from_json(model, text, [one])


def test_shipped_indexes_open_with_their_dictionaries() -> None:
    dictionary = wb.load_dictionary("resid-15")
    assert len(wb.open_index("resid-15", dictionary=dictionary)) == dictionary.n_features
    for name in ("tokfsm-attention", "tokfsm-plain"):
        model = wb.load_model(name)
        assert model.former_hash != model.hash
        assert model.is_named(model.former_hash)


def test_settings_of_older_versions_are_compared_by_the_former_hash() -> None:
    now = {"source": {"model_hash": "new", "former_hash": "old", "seed": 0}, "lr": 1.0}
    assert difference({"source": {"model_hash": "old", "seed": 0}, "lr": 1.0}, now) == ""
    assert "model_hash" in difference({"source": {"model_hash": "other", "seed": 0}, "lr": 1.0}, now)
    assert "lr" in difference({"source": {"model_hash": "old", "seed": 0}, "lr": 2.0}, now)
    assert "model_hash" in difference({"source": now["source"] | {"model_hash": "x"}, "lr": 1.0}, now)  # type: ignore[operator]


def test_a_model_with_dictionaries_is_what_was_saved_or_is_refused(tmp_path: Path) -> None:
    for half in (False, True):
        model = fresh()
        model.splices = {POINT: wb.Codebook(32, 8, k=2, hook_point=POINT)}
        folder = tmp_path / str(half)
        wb.interventions.save_model(model, folder, half=half)
        opened = wb.load_model(folder)
        assert (opened.hash == model.hash) != half
        assert opened.plain_hash == model.plain_hash != opened.hash
        note = (folder / "spliced.json").read_text()
        assert json.loads(note)["hash"] == opened.hash
        (folder / "spliced.json").write_text(note.replace(opened.hash, "0" * 64))
        with pytest.raises(wb.model.ModelError, match="not the model that was saved there"):
            wb.load_model(folder)
        (folder / "spliced.json").write_text(note)
        wb.Codebook(32, 8, k=1, hook_point=POINT).write(folder / "dictionaries" / "0")
        with pytest.raises(wb.model.ModelError, match="not the dictionary that was saved with the model"):
            wb.load_model(folder)
        wb.Codebook(32, 8, k=2, hook_point=POINT).write(folder / "dictionaries" / "0", half=half)
        assert wb.load_model(folder).hash == opened.hash
        changed(folder / "model" / "config.json", lambda one: one | {"rms_norm_eps": 0.1})
        with pytest.raises(wb.model.ModelError, match="was made for a model of the hash"):
            wb.load_model(folder)


def test_a_store_is_what_was_written_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "BLOCK", 1000)
    harvest = Harvest(fresh(), CORPUS, POINT, context=16, batch=4)
    asked = iter(range(100))
    begun = Store.write(harvest, tmp_path / "s", commit_every=0, cancel=lambda: next(asked) >= 2)
    assert len(begun) > 0
    assert not begun.complete
    store = Store.write(harvest, tmp_path / "s", commit_every=0)
    whole = Store.write(harvest, tmp_path / "whole")
    assert store.note["checksums"] == whole.note["checksums"]
    assert len(store.note["checksums"][POINT]) > 3
    store.check()
    file = tmp_path / "s" / f"{POINT}.bin"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    altered = Store(tmp_path / "s")
    assert torch.equal(altered[:3].tokens, whole[:3].tokens), "its block is as it was"
    for read in (
        altered.check,
        lambda: altered[len(altered) - 2 :],
        lambda: altered[torch.tensor([0, -1])],
        lambda: list(altered.run()),
    ):
        with pytest.raises(HarvestError, match="was altered since it was written"):
            read()
    changed(tmp_path / "s" / "progress.json", lambda note: note | {"checksums": {}})
    with pytest.raises(HarvestError, match="lacks checksums"):
        Store(tmp_path / "s")


def test_weights_that_are_no_numbers_are_refused_at_every_opening(tmp_path: Path) -> None:
    for value in (torch.nan, torch.inf):
        module: Any = tiny.build("llama")
        wb.load_model(module)  # its table of hook points is kept
        module.model.layers[1].mlp.down_proj.weight.data[3, 4] = value
        module.save_pretrained(tmp_path / str(value))
        tiny.tokenizer().save_pretrained(tmp_path / str(value))
        for source in (module, tmp_path / str(value)):
            with pytest.raises(wb.model.ModelError, match=r"down_proj.weight of this model holds values that are not"):
                wb.load_model(source)


def test_a_dictionary_of_no_numbers_is_refused_at_every_door(tmp_path: Path) -> None:
    sae = trained()
    sae.W_dec[3, 4] = torch.nan
    with pytest.raises(wb.WorkbenchError, match="can't be saved: its W_dec holds values that are not finite"):
        sae.save(tmp_path / "d")
    with pytest.raises(FeatureIndexError, match="can't be indexed: its W_dec holds values that are not finite"):
        wb.build_index(fresh(), sae, CORPUS, tmp_path / "index")
    big = trained()
    big.W_dec.fill_(3e38)
    with pytest.raises(wb.WorkbenchError, match="not finite numbers with topk"):
        wb.measure_fidelity(fresh(), big, CORPUS, tokens=60)
    how: dict[str, Any] = {"tokens": 64, "context": 16, "batch_size": 16, "block": 32, "warmup": 0.0, "decay": 0.0}
    with pytest.raises(wb.WorkbenchError, match=r"not finite numbers|The loss is"):
        wb.train(trained(), fresh(), POINT, CORPUS, lr=1e38, **how)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("model.layers.7.mlp.up_proj.weight", True),
        ("model.layers.0.self_attn.q_proj.bias", True),
        ("score.weight", False),
    ],
)
def test_weights_that_the_configuration_leaves_out(
    name: str, refused: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.build("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {name: torch.ones(3)}, file, metadata={"format": "pt"})
    if refused:
        with pytest.raises(wb.model.ModelError, match=f"holds the weights {name}, which"):
            wb.load_model(tmp_path)
    else:
        wb.load_model(tmp_path)
        assert f"no part of the model: {name}" in caplog.text


def test_values_that_are_no_numbers_stop_with_the_intervention_that_made_them() -> None:
    model = fresh()
    mild, wild = wb.Clamp("neurons.0.post:3", 1.0), wb.Clamp("neurons.1.post:3", 3e38)
    later = wb.Clamp("neurons.1.post:3", 3e38, positions="generated")
    sae = trained()
    wildest = wb.Clamp(sae.feature(3), 3e38)
    for edits, cause in (([mild, wild], wild), ([wildest, mild], wildest), ([mild, later], later)):
        calls: list[Callable[[], Any]] = [
            lambda edits=edits: model.generate("The dog", 6, interventions=edits),
            lambda edits=edits: model.generate_batch(["The dog", "A"], 6, interventions=edits),
            lambda edits=edits: list(model.stream("The dog", 6, interventions=edits)),
            lambda edits=edits: wb.compare(model, "The dog", edits, 6),
        ]
        for call in calls:
            with pytest.raises(wb.WorkbenchError, match="makes the model compute values that are not") as caught:
                call()
            assert str(caught.value).startswith(str(cause))
    with pytest.raises(wb.WorkbenchError, match=r"^Clamp\(neurons.1.post:3, 3e\+38\) makes the model"):
        wb.measures.dose_response(
            model, "The dog", " ran", [1.0, 3e38], lambda value: [wb.Clamp("neurons.1.post:3", value)]
        )
    with model.intervening([wild]), pytest.raises(wb.WorkbenchError, match=r"^Clamp.neurons.1.post:3, 3e.38. makes"):
        model.generate("The dog", 6, interventions=[mild])
    assert model.generate("The dog", 6, interventions=[mild]).tokens


def test_values_that_nobody_meant_are_refused(tmp_path: Path) -> None:
    model = fresh()
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: wb.neurons.token_scores(model, Feature("neurons.0.gate", 3), scale="raww"), "scale is"),  # type: ignore[arg-type]
        (lambda: wb.dictionaries.StandardSAE(8, 16, l1=-5), "l1 is"),
        (lambda: wb.dictionaries.JumpReLUSAE(8, 16, bandwidth=float("nan")), "bandwidth is"),
    ]
    for same in (tmp_path / "a", str(tmp_path / "b" / ".." / "a")):
        dictionaries = {str(tmp_path / "a"): trained(), Path(same) if same == tmp_path / "a" else same: trained(5)}
        calls.append((lambda of=dictionaries: wb.index.build_indexes(model, of, CORPUS), "have the same folder"))
    for call, match in calls:
        with pytest.raises(wb.WorkbenchError, match=match):
            call()


def test_a_dictionary_made_for_another_model_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model, other, sae = fresh(), fresh(rms_norm_eps=0.1), trained()
    sae.provenance = {"model_name": "theirs", "model_hash": other.hash}
    with caplog.at_level(logging.WARNING), other.spliced({POINT: sae}):
        other(TOKENS)
    assert not caplog.records
    for _ in range(2):
        model.generate("The dog", 2, interventions=[wb.Clamp(sae.feature(3), 1.0)])
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"topk was made for theirs ({other.hash[:12]}) and is used on LlamaForCausalLM")
    caplog.clear()
    foreign = trained()
    foreign.provenance = {"model_name": "gpt2-small"}
    model.bind([wb.Clamp(foreign.feature(3), 1.0)])
    assert not caplog.records, "a module has no name of the hub"
    model.name = "openai-community/gpt2"
    model.bind([wb.Clamp(foreign.feature(3), 1.0)])
    assert not caplog.records
    model.name = "EleutherAI/pythia-70m"
    model.bind([wb.Clamp(foreign.feature(3), 1.0)])
    assert "was made for gpt2-small and is used on EleutherAI/pythia-70m" in caplog.text


@pytest.mark.parametrize(
    ("stated", "name", "another"),
    [
        ("gemma-2-2b", "google/gemma-2-2b", False),
        ("google/gemma-2-2b", "google/gemma-2-2b-it", True),
        ("gemma-2-2b", "google/gemma-2-9b", True),
        ("gpt2-small", "gpt2", False),
        ("gpt2", "openai-community/gpt2-medium", True),
        ("llama3.1-8b", "meta-llama/Meta-Llama-3.1-8B", False),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", True),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m", True),
        ("", "gpt2", False),
    ],
)
def test_names_of_models_in_the_words_of_tools(stated: str, name: str, *, another: bool) -> None:
    model = fresh()
    model.name = name
    assert is_of_another({"model_name": stated}, model) == another


def test_features_of_two_dictionaries_of_one_name_differ() -> None:
    one, other, twin = trained(), trained(seed=1), trained()
    assert one.name == other.name == "topk"
    assert one.feature(3) != other.feature(3)
    assert one.feature(3) == twin.feature(3) == Feature("topk", 3)
    assert len({one.feature(3), other.feature(3), twin.feature(3), one.feature(4)}) == 3

"""Children: what they share, undo, saving that is killed, loading, certificates, threads."""

from __future__ import annotations

import gc
import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from bake_models import EDITS, TOKENS, certified, fresh
from reference import kl

import workbench as wb
from workbench.core.hashing import fingerprint
from workbench.model.weights import ModelError, parameters_of
from workbench.surgery.child import make_child
from workbench.surgery.child_building import keep_layers
from workbench.surgery.registry import OPERATIONS, Argument

pytestmark = pytest.mark.usefixtures("tiny_cache")

DOWN = "model.layers.1.mlp.down_proj.weight"


def test_a_child_has_only_the_tensors_that_differ() -> None:
    parent = fresh()
    old = parameters_of(parent.network.module)
    child = make_child(
        parent, {DOWN: 2 * old[DOWN], "model.norm.weight": old["model.norm.weight"].clone()}, {"operation": "x"}
    )
    new = parameters_of(child.model.network.module)
    assert child.own == (DOWN,)
    assert [name for name in old if new[name].data_ptr() != old[name].data_ptr()] == [DOWN]
    assert child.model.weights_hash == fingerprint(new) != parent.weights_hash


def test_undo_gives_the_exact_weights_or_says_that_it_cant() -> None:
    parent = fresh()
    before = {name: tensor.clone() for name, tensor in parameters_of(parent.network.module).items()}
    child = wb.bake(
        wb.bake(parent, EDITS),
        [wb.interventions.AblateDirection(torch.arange(1.0, 33.0)), wb.interventions.RemoveLayer(2)],
    )
    first = child.before
    assert first is not None
    assert child.undo() is first.model
    undone = parameters_of(first.undo().network.module)
    assert all(torch.equal(before[name], tensor) for name, tensor in undone.items())
    assert undone.keys() == before.keys()
    with torch.no_grad():
        parameters_of(parent.network.module)[DOWN][0, 0] += 1
    with pytest.raises(wb.surgery.SurgeryError, match=r"weights of .* were changed"):
        first.undo()


def test_history_names_every_step() -> None:
    parent = fresh()
    child = wb.surgery.apply_operation(wb.bake(parent, EDITS), "remove_layers", layers=[0])
    assert [step["operation"] for step in child.history] == ["bake", "bake"]
    assert [step["parent"]["hash"] for step in child.history] == [parent.hash, child.parent.hash]
    assert child.history[-1]["hash"] == child.model.hash
    assert child.model.name == f"{parent.name} (bake, bake)"
    again = wb.surgery.apply_operation(wb.bake(parent, EDITS), "remove_layers", layers=[0])
    assert [step["edit_hash"] for step in again.history] == [step["edit_hash"] for step in child.history]
    assert len({step["edit_hash"] for step in child.history}) == 2
    assert {"python", "torch", "transformers", "workbench-lm"} <= child.history[0]["versions"].keys()


def test_a_certificate_does_not_depend_on_what_is_still_in_memory() -> None:
    """The middle child of three is released before the last one is measured, or held."""
    certificates = []
    for held in (True, False):
        first = wb.bake(fresh(), EDITS)
        middle = wb.surgery.apply_operation(first, "prune", sparsity=0.3)
        last = wb.surgery.apply_operation(middle, "remove_layers", layers=[0])
        if not held:
            del first, middle
            gc.collect()
        certificates.append(last.certify(wb.Corpus(tiny.TEXT.strip().splitlines(), "lines"), 200, context=32))
    one, other = (replace(certificate, made={}).to_dict() for certificate in certificates)
    names = ("differences", "perplexity_before", "perplexity_after", "kl", "same_top", "exact", "parent")
    assert {name: one[name] for name in names} == {name: other[name] for name in names}
    assert not certificates[1].unmeasured


def test_the_certificate_says_what_a_plain_computation_says(tmp_path: Path) -> None:
    parent, corpus = fresh(), wb.Corpus(tiny.TEXT.strip().splitlines(), "lines")
    child = wb.bake(parent, EDITS)
    said = child.certify(corpus, 10_000, context=32, batch=1, tasks={"half": lambda model: 0.5 + (model is parent)})
    nats, far, same, differences = [], [], [], []
    for batch in corpus.batches(parent, 32, 1):
        tokens, text = batch.tokens, batch.content[0]
        with torch.inference_mode():
            before, after = parent(tokens)[0], child.model(tokens)[0]
            with parent.intervening(EDITS):
                differences.append(float((parent(tokens)[0] - after).abs().max()))
        for at in range(tokens.shape[1] - 1):
            if bool(text[at] and text[at + 1]):
                target = int(tokens[0, at + 1])
                nats.append([-float(x[at].double().log_softmax(-1)[target]) for x in (before, after)])
                far.append(float(kl(before[at], after[at])))
                same.append(int(before[at].argmax()) == int(after[at].argmax()))
    mean = torch.tensor(nats).double().mean(0)
    assert said.predictions == len(nats)
    assert said.perplexity_before == pytest.approx(math.exp(mean[0]), rel=1e-5)
    assert said.perplexity_after == pytest.approx(math.exp(mean[1]), rel=1e-5)
    assert said.kl == pytest.approx(sum(far) / len(far), rel=1e-4)
    assert said.same_top == pytest.approx(sum(same) / len(same))
    assert said.max_logit_difference == pytest.approx(max(differences), abs=1e-6)
    assert said.exact
    assert said.tasks == {"half": (1.5, 0.5)}
    assert said.corpus == {"name": "lines", "hash": corpus.hash}
    child.save_pretrained(tmp_path / "child")
    written = json.loads((tmp_path / "child" / "certificate.json").read_text())
    assert wb.surgery.Certificate.from_dict(written) == said
    assert written["parent"]["hash"] == parent.hash
    assert written["steps"][0]["edit_hash"] == child.history[0]["edit_hash"]
    page = (tmp_path / "child" / "certificate.md").read_text()
    assert f"{said.kl:.4g} nats" in page
    assert child.history[0]["edit_hash"] in page


def test_a_wrong_child_is_not_certified_as_exact() -> None:
    child = wb.bake(fresh(), [wb.Scale("neurons.1.post:3", 2.0)])
    child.reference = (wb.Scale("neurons.1.post:3", 2.01),)
    said = child.certify(tokens=64)
    assert said.max_logit_difference is not None
    assert said.max_logit_difference > 1e-4
    assert not said.exact
    assert "more than" in said.to_markdown()


def test_each_step_is_held_against_its_own_parent() -> None:
    child = wb.bake(wb.bake(fresh(), EDITS), [wb.interventions.RemoveLayer(0)])
    other = make_child(child.model, {}, {"operation": "nothing"})
    assert other.before is child
    said = certified(other).certificate
    assert said is not None
    assert len(said.differences) == 3
    assert said.differences[2] is None
    assert said.parent["hash"] == child.before.parent.hash  # type: ignore[union-attr]
    assert said.exact


def test_without_a_tokenizer_random_tokens_are_measured(tmp_path: Path) -> None:
    parent = wb.load_model(tiny.build("gpt2"))
    child = wb.bake(parent, [wb.interventions.RemoveHead(0, 1)])
    assert child.certify(tokens=256).corpus["name"] == "random tokens"
    child.save_pretrained(tmp_path / "child")
    assert wb.load_model(tiny.build("gpt2")).hash == parent.hash


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    parent = fresh()
    child = certified(wb.bake(parent, EDITS))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(wb.surgery.SurgeryError, match="holds no checkpoint of this kind"):
        child.save_pretrained(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"
    with pytest.raises(wb.surgery.SurgeryError, match="can't be written"):
        child.save_pretrained(tmp_path / "notes" / "mine.txt" / "child")
    with pytest.raises(wb.surgery.SurgeryError, match="holds no model that was saved by surgery"):
        wb.surgery.open_child(tmp_path / "notes", parent)
    child.save_pretrained(tmp_path / "child")
    with pytest.raises(wb.surgery.SurgeryError, match="was made from"):
        wb.surgery.open_child(tmp_path / "child", fresh("qwen2"))
    note = json.loads((tmp_path / "child" / "surgery.json").read_text())
    (tmp_path / "child" / "surgery.json").write_text(json.dumps(note | {"hash": "0" * 64}))
    with pytest.raises(wb.surgery.SurgeryError, match="not those that were saved"):
        wb.surgery.open_child(tmp_path / "child", parent)
    (tmp_path / "child" / "surgery.json").write_text(json.dumps(note))
    data = (tmp_path / "child" / "model.safetensors").read_bytes()
    (tmp_path / "child" / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(wb.surgery.SurgeryError, match="No model could be loaded"):
        wb.surgery.open_child(tmp_path / "child", parent)
    with pytest.raises(ModelError, match=r"no config\.json"):
        wb.surgery.verify_checkpoint(tmp_path / "notes", child.model)


def test_only_a_corpus_is_measured_on() -> None:
    with pytest.raises(wb.WorkbenchError, match="corpus is a Corpus"):
        wb.bake(fresh(), EDITS).certify("stories", 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["module", "tokenizer"])
def test_a_save_that_fails_leaves_the_old_checkpoint_whole(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = fresh()
    child, other = certified(wb.bake(parent, EDITS)), certified(wb.bake(parent, [wb.interventions.RemoveLayer(0)]))
    child.save_pretrained(tmp_path / "child")
    with monkeypatch.context() as patch:
        breaks = other.model.tokenizer if part == "tokenizer" else other.model.network.module

        def full(*_: object) -> None:
            raise OSError("the disk is full")

        patch.setattr(type(breaks), "save_pretrained", full)
        with pytest.raises(wb.surgery.SurgeryError, match="the disk is full"):
            other.save_pretrained(tmp_path / "child")
    assert wb.surgery.open_child(tmp_path / "child", parent).model.hash == child.model.hash
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize(
    ("tensors", "config", "match"),
    [
        ({"model.layers.9.mlp.down_proj.weight": torch.zeros(32, 48)}, {}, "has no place for"),
        ({DOWN: torch.zeros(32, 47)}, {}, r"is \[32, 48\] in the changed model"),
        ({DOWN: torch.full((32, 48), torch.inf)}, {}, "not a finite number"),
        ({}, {"mlp_bias": True}, "needs a tensor for"),
        ({}, {"colour": 1}, "has no 'colour'"),
        ({}, {"num_attention_heads": 5}, r"can't be built|in the changed model"),
    ],
)
def test_tensors_that_dont_fit(llama: wb.model.LanguageModel, tensors: dict, config: dict, match: str) -> None:
    with pytest.raises(wb.surgery.SurgeryError, match=match):
        make_child(llama, tensors, {"operation": "x"}, config=config)


def test_layers_to_keep(llama: wb.model.LanguageModel) -> None:
    for layers, match in (([], "at least one"), ([0, 0], "twice"), ([3], "no layer 3"), ([0.5], "no layer 0.5")):
        with pytest.raises(wb.surgery.SurgeryError, match=match):
            keep_layers(llama, layers)  # type: ignore[arg-type]
    gpt2 = wb.load_model(tiny.build("gpt2", scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(wb.surgery.SurgeryError, match="by their number"):
        keep_layers(gpt2, [0])


def test_lists_of_a_value_for_each_layer_become_shorter() -> None:
    kinds = ["sliding_attention", "full_attention"]
    parent = wb.load_model(tiny.build("qwen2", layer_types=kinds, sliding_window=4, use_sliding_window=True))
    child = wb.bake(parent, [wb.interventions.RemoveLayer(0)])
    assert child.model.network.config.layer_types == ["full_attention"]
    with parent.intervening([wb.interventions.RemoveLayer(0)]):
        assert torch.allclose(parent(TOKENS), child.model(TOKENS), atol=1e-5)


def test_operations_check_their_arguments(llama: wb.model.LanguageModel) -> None:
    assert {"bake", "remove_layers", "remove_sublayers", "remove_heads", "ablate_direction"} <= OPERATIONS.keys()
    for call, match in (
        (lambda: wb.surgery.apply_operation(llama, "melt"), "There is no operation 'melt'"),
        (lambda: wb.surgery.apply_operation(llama, "remove_layers", layer=1), "has no argument 'layer'"),
        (
            lambda: wb.surgery.apply_operation(llama, "remove_layers", layers="01"),
            "layers is a list of layers, not '01'",
        ),
        (
            lambda: wb.surgery.apply_operation(llama, "remove_sublayers", layers=[0], part="norm"),
            "part is 'attention' or 'mlp'",
        ),
        (
            lambda: wb.surgery.apply_operation(llama, "remove_heads", layer=-1, heads=[0]),
            "layer is a whole number from 0",
        ),
        (lambda: wb.surgery.apply_operation(llama, "ablate_direction", feature=3), "feature is a feature"),
    ):
        with pytest.raises(wb.surgery.SurgeryError, match=match):
            call()
    assert Argument("p", "Share", 0.5, low=0, high=1).check(1, wb.surgery.SurgeryError) == 1
    with pytest.raises(wb.surgery.SurgeryError, match=r"p is a number from 0 to 1, not nan"):
        Argument("p", "Share", 0.5, low=0, high=1).check(float("nan"), wb.surgery.SurgeryError)


def test_threads_that_bake_at_once_get_what_they_would_get_alone() -> None:
    parent = fresh()
    lists = [[wb.Clamp(f"neurons.{n % 3}.gate:{n}", 1.0 + n)] for n in range(6)]
    alone = [wb.bake(parent, edits).model.hash for edits in lists]
    wanted = parent(TOKENS)
    found: dict[int, str] = {}
    seen: list[bool] = []

    def work(number: int) -> None:
        found[number] = wb.bake(parent, lists[number]).model.hash

    def read() -> None:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            seen.append(torch.equal(parent(TOKENS), wanted))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(6)] == alone
    assert seen
    assert all(seen)

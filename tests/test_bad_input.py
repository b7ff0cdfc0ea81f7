"""What a person can get wrong: each is one sentence in an exception of the package's own, before anything runs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import workbench as wb
from workbench.dictionaries.folder import DictionaryError
from workbench.interventions.saved import from_dict, to_dict, to_json

F = "neurons.1.gate:7"
INF, NAN = float("inf"), float("nan")
Model = wb.model.LanguageModel
OWN = (
    wb.model.EditError,
    wb.dictionaries.FeatureError,
    wb.model.HookPointError,
    wb.model.ModelError,
    wb.model.PromptError,
    DictionaryError,
)


def refused(kind: type[Exception], act: Callable[[], object]) -> str:
    """The one sentence with which `act` is refused."""
    with pytest.raises(kind) as caught:
        act()
    said = str(caught.value)
    assert re.fullmatch(r"[^\n]+[.?]", said), said
    assert said[0] not in "'\"" or said.count(said[0]) > 1
    assert "object at 0x" not in said
    return said


def generate(model: Model, *interventions: Any, **how: Any) -> Any:
    return model.generate("The dog ran", **({"max_new_tokens": 3, "interventions": list(interventions)} | how))


# --- values and kinds of interventions


@pytest.mark.parametrize(
    "value", [NAN, INF, -INF, 1e39, -1e300, 10**400, "20", None, True, [1.0], torch.tensor([2.0])], ids=repr
)
def test_values_that_are_no_finite_number(value: Any) -> None:
    for make in (
        lambda: wb.Clamp(F, value),
        lambda: wb.Scale(F, value),
        lambda: wb.Steer(F, value),
        lambda: wb.Steer.along("blocks.0.hook_out", [1.0] * 32, value),
    ):
        assert "finite number" in refused(wb.model.EditError, make)
    if value is not None:
        assert "finite number" in refused(wb.model.EditError, lambda: wb.Ablate(F, "mean", value))


@pytest.mark.parametrize("value", [3.4e38, -3.4e38, 0, -0.0, 10**30, 1e-300])
def test_the_largest_and_smallest_numbers_are_let_through(llama: Model, value: float) -> None:
    tokens = llama.to_tokens("The dog")
    with llama.intervening([wb.Clamp(F, value)]):
        found = llama.capture(tokens, ["blocks.1.mlp.hook_pre"])["blocks.1.mlp.hook_pre"]
    assert torch.equal(found[..., 7], torch.full_like(found[..., 7], float(value)))


def test_numbers_of_other_libraries_become_pythons() -> None:
    feature = wb.dictionaries.Feature("neurons.1.gate", np.int64(7))  # type: ignore[arg-type]
    assert str(feature) == F
    assert type(feature.index) is int
    clamp = wb.Clamp(F, np.float32(2), positions=[np.int64(3), 1])  # type: ignore[arg-type]
    assert clamp == wb.Clamp(F, 2.0, positions=[1, 3])
    assert wb.Clamp(F, 1, positions=np.array([3, 1])).positions == (1, 3)  # type: ignore[arg-type]
    assert wb.Clamp(F, torch.tensor(2.0), positions=torch.tensor([3, 1])) == clamp  # type: ignore[arg-type]
    json.dumps(to_dict(clamp))
    for value in (np.bool_(True), True):
        refused(wb.dictionaries.FeatureError, lambda value=value: wb.dictionaries.Feature("neurons.1.gate", value))
        refused(wb.model.EditError, lambda value=value: wb.Clamp(F, value))
        refused(wb.model.EditError, lambda value=value: wb.Clamp(F, 1, positions=[value]))


@pytest.mark.parametrize(
    "direction", [[NAN] * 32, [INF] + [0.0] * 31, [1e39] * 32, "north", ["a", "b"], [[1], [2, 3]], None], ids=repr
)
def test_directions_that_are_none(direction: Any) -> None:
    assert "direction" in refused(wb.model.EditError, lambda: wb.Steer.along("blocks.0.hook_out", direction, 1.0))


@pytest.mark.parametrize(
    ("width", "hook"), [(31, "blocks.0.hook_out"), (0, "hook_embed"), (32, "blocks.0.mlp.hook_post")]
)
def test_directions_of_another_width(llama: Model, width: int, hook: str) -> None:
    said = refused(wb.model.EditError, lambda: generate(llama, wb.Steer.along(hook, [1.0] * width, 1.0)))
    assert str(width) in said
    assert hook.replace("hook_embed", "embed") in said.replace("hook_embed", "embed")


@pytest.mark.parametrize("mode", ["median", "", None, "Zero", 0])
def test_modes_of_ablation_that_are_unknown(mode: Any) -> None:
    assert repr(mode) in refused(wb.model.EditError, lambda: wb.Ablate(F, mode))


@pytest.mark.parametrize("feature", [5, None, 1.5, ["neurons.1.gate:7"], torch.tensor(3)], ids=repr)
def test_things_that_are_no_feature(feature: Any) -> None:
    for kind in (wb.Clamp, wb.Scale, wb.Steer):
        assert "feature" in refused(wb.model.EditError, lambda kind=kind: kind(feature, 1.0))
    assert "feature" in refused(wb.model.EditError, lambda: wb.Ablate(feature))


@pytest.mark.parametrize("given", ["a list", [5], ["neurons.1.gate:7"], [None], 3, {"a": 1}, [wb.Clamp]], ids=repr)
def test_things_that_are_no_interventions(llama: Model, given: Any) -> None:
    for act in (
        lambda: llama.generate("The dog", 2, interventions=given),
        lambda: llama.intervening(given).__enter__(),
        lambda: wb.compare(llama, "The dog", given, 2),
    ):
        assert "list" in refused(wb.model.EditError, act)


def test_one_intervention_without_its_list(llama: Model) -> None:
    assert "list" in refused(wb.model.EditError, lambda: llama.generate("The dog", 2, interventions=wb.Clamp(F, 1.0)))  # type: ignore[arg-type]


# --- features


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a.1.b",
        ":7",
        "a.1:",
        "a.1:-7",
        "a.1:7.0",
        "a:b",
        "a.1:0x7",
        "a.1 : 7 8",
        "a\nb:3",
        "a.1:7:",
        "a.1:" + "9" * 5000,
        7,
        None,
        b"a:1",
    ],
    ids=repr,
)
def test_malformed_feature_ids(text: Any) -> None:
    assert "is not a feature" in refused(wb.dictionaries.FeatureError, lambda: wb.Feature.parse(text))


@pytest.mark.parametrize(
    ("dictionary", "index"), [("a", -1), ("a", 1.0), ("a", "1"), ("a", None), ("a", True), ("", 1), (5, 1), (None, 1)]
)
def test_malformed_features(dictionary: Any, index: Any) -> None:
    refused(wb.dictionaries.FeatureError, lambda: wb.Feature(dictionary, index))


FEATURES = {
    "neurons.3.gate:0": "layer 3",
    "neurons.99.post:0": "0 to 2",
    "neurons.0.gate:48": "0 to 47",
    "neurons.0.gate:999999999999999999": "48 features",
    "neurons.0.nose:1": "gate, up, post",
    "neurons.0.down:1": "gate, up, post",
    "neurons.0.GATE:1": "gate, up, post",
    "neurons.gate:1": "neurons.LAYER.SITE",
    "neurons.-1.gate:1": "neurons.LAYER.SITE",
    "neurons.1.5.gate:1": "neurons.LAYER.SITE",
    "neurons.x.gate:1": "neurons.LAYER.SITE",
    "neurons.².gate:1": "neurons.LAYER.SITE",
    "neurons..gate:1": "neurons.LAYER.SITE",
    "neurons:1": "neurons.LAYER.SITE",
}


@pytest.mark.parametrize("text", FEATURES)
def test_features_that_the_model_lacks(llama: Model, text: str) -> None:
    for act in (
        lambda: generate(llama, wb.Clamp(text, 1.0)),
        lambda: llama.intervening([wb.Steer(text, 1.0)]).__enter__(),
        lambda: wb.compare(llama, "The dog", [wb.Scale(text, 2.0)], 2),
        lambda: wb.neurons.token_scores(llama, wb.Feature.parse(text)),
        lambda: wb.neurons.nearest_neurons(llama, wb.Feature.parse(text)),
        lambda: wb.measures.dose_response(llama, "The", " dog", [1.0], lambda value: [wb.Clamp(text, value)]),
    ):
        assert FEATURES[text] in refused(wb.dictionaries.FeatureError, act)


@pytest.mark.parametrize("text", ["neurons.29.gat:8", "neurons.0.down:1", "neurons.gate:1", "neurons:1"])
def test_wrong_names_of_neurons_are_refused_where_they_are_written(text: str) -> None:
    """No model is needed to see that there are none of this name."""
    right = "LAYER.SITE" if "." not in text.removeprefix("neurons.") else "gate, up, post"
    for make in (lambda: wb.Clamp(text, 3.0), lambda: wb.Scale(text, 2.0), lambda: wb.Steer(text, 1.0)):
        assert right in refused(wb.dictionaries.FeatureError, make)
    wb.Clamp("neurons.99.gate:8", 3.0)  # a larger model may have it


def test_gate_neurons_of_a_model_without_gates(zoo) -> None:
    assert "up, post" in refused(
        wb.dictionaries.FeatureError, lambda: generate(zoo["gpt2"], wb.Clamp("neurons.0.gate:1", 1.0))
    )
    assert "up, post" in refused(wb.model.ModelError, lambda: wb.decode_neurons(zoo["gpt2"], "gate"))


def test_features_of_dictionaries_that_are_not_loaded(llama: Model) -> None:
    assert "my-sae is not loaded" in refused(DictionaryError, lambda: generate(llama, wb.Clamp("my-sae:3", 1.0)))


# --- hook points


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("blocks.1.hook_resid_pots", "blocks.1.hook_resid_post"),
        ("blocks.7.hook_resid_post", "blocks.2.hook_resid_post"),
        ("blocks.1.mlp.hook_gate", "blocks.1.mlp.hook_"),
        ("block.1.attn.hook_z", "blocks.1.attn.hook_z"),
        ("model.layers.1.mlp", None),
        ("", None),
        (None, None),
        (3, None),
    ],
)
def test_wrong_hook_points_get_the_nearest_right_one(llama: Model, wrong: Any, right: str | None) -> None:
    for act in (lambda: llama.capture("The dog", [wrong]), lambda: llama.hook_points[wrong]):
        said = refused(wb.model.HookPointError, act)
        assert f"{wrong!r}" in said
        assert right is None or f"did you mean '{right}" in said
    if isinstance(wrong, str):
        steer = wb.Steer.along(wrong, [1.0] * 32)
        assert right is None or right in refused(wb.model.HookPointError, lambda: generate(llama, steer))


def test_hook_points_that_have_no_positions(llama: Model) -> None:
    for name in ("blocks.0.attn.hook_pattern", "blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_cos"):
        steer = wb.Steer.along(name, [1.0] * llama.hook_points[name].width)
        assert "can be read but not edited" in refused(wb.model.EditError, lambda steer=steer: generate(llama, steer))


# --- positions


@pytest.mark.parametrize(
    "positions", ["last", "", "Prompt", [], (), -1, [1, -2], 1.5, [0.0], None, [True], ["1"], [None], {}], ids=repr
)
def test_positions_that_are_none(positions: Any) -> None:
    for make in (
        lambda: wb.Clamp(F, 1.0, positions=positions),
        lambda: wb.Steer.along("blocks.0.hook_out", [1.0] * 32, positions=positions),
    ):
        assert re.search("position", refused(wb.model.EditError, make), re.I)


def test_positions_past_the_end(llama: Model) -> None:
    tokens = torch.arange(10, 20)
    for act, last in (
        (lambda edits: llama.generate(tokens, 4, interventions=edits), 12),
        (lambda edits: list(llama.stream(tokens, 4, interventions=edits)), 12),
        (lambda edits: llama.generate_batch([tokens, tokens[:3]], 4, interventions=edits), 5),
        (lambda edits: within(llama, edits, lambda: llama(tokens)), 9),
        (lambda edits: within(llama, edits, lambda: llama.capture(tokens, ["hook_embed"])), 9),
        (lambda edits: within(llama, edits, lambda: llama(tokens[None], mask=(tokens < 15)[None])), 4),
        (lambda edits: wb.compare(llama, tokens, edits, 4), 12),  # type: ignore[arg-type]
    ):
        act([wb.Clamp(F, 1.0, positions=[last])])
        said = refused(wb.model.EditError, lambda act=act, last=last: act([wb.Clamp(F, 1.0, positions=[0, last + 1])]))
        assert f"position {last + 1}" in said
        assert F in said


def within(model: Model, edits: list[Any], act: Callable[[], object]) -> object:
    with model.intervening(edits):
        return act()


def test_generated_positions_where_nothing_is_generated(llama: Model) -> None:
    edits = [wb.Clamp(F, 1.0, positions="generated")]
    for act in (
        lambda: within(llama, edits, lambda: llama("The dog")),
        lambda: within(llama, edits, lambda: llama.capture("The dog", ["hook_embed"])),
        lambda: within(llama, edits, lambda: llama(torch.arange(5), prompt_length=5)),
        lambda: llama.generate("The dog", 1, interventions=edits),
        lambda: wb.compare(llama, "The dog", edits, 1),
        lambda: wb.measures.dose_response(llama, "The", "a", [1.0], lambda value: edits),
    ):
        assert "generated tokens only" in refused(wb.model.EditError, act)


# --- prompts, tokens, settings


@pytest.mark.parametrize("prompt", ["", None, 5, b"abc"], ids=repr)
def test_prompts_that_are_none(llama: Model, prompt: Any) -> None:
    for act in (
        lambda: llama.generate(prompt),
        lambda: llama.generate_batch(["The dog", prompt]),
        lambda: list(llama.stream(prompt)),
        lambda: llama(prompt),
        lambda: wb.compare(llama, prompt, []),
        lambda: wb.measures.dose_response(llama, prompt, " dog", [], lambda value: []),
    ):
        refused(wb.model.PromptError, act)


def test_empty_words_and_batches(llama: Model) -> None:
    refused(wb.model.PromptError, lambda: wb.measures.dose_response(llama, "The", "", [], lambda value: []))
    refused(wb.model.PromptError, lambda: wb.neurons.neurons_writing(llama, ""))
    refused(wb.model.PromptError, lambda: llama.generate_batch([]))
    refused(wb.model.PromptError, lambda: llama.to_tokens(""))


@pytest.mark.parametrize("message", ["", "  \n ", [], None, 5, [5], ["hi"], [None]], ids=repr)
def test_messages_that_are_none(llama: Model, message: Any) -> None:
    refused(wb.model.PromptError, lambda: llama.chat(message))
    refused(wb.model.PromptError, lambda: llama.chat_prompt(message))


def test_prompts_longer_than_the_context(llama: Model) -> None:
    long = "a" * (tiny.CONTEXT + 1)
    for act in (
        lambda: llama.generate(long, 1),
        lambda: llama.generate("a" * tiny.CONTEXT, 1),
        lambda: llama.generate("a", tiny.CONTEXT),
        lambda: llama.generate_batch(["a", long], 1),
        lambda: llama.chat(long, 1),
        lambda: list(llama.stream(long, 1)),
        lambda: llama(long),
        lambda: llama.capture(long, ["hook_embed"]),
        lambda: wb.compare(llama, long, [], 1),
        lambda: wb.measures.dose_response(llama, long, " dog", [], lambda value: []),
        lambda: wb.measures.dose_response(llama, "The", long, [], lambda value: []),
    ):
        assert str(tiny.CONTEXT) in refused(wb.model.PromptError, act)


TOKENS: dict[str, Any] = {
    "beyond the vocabulary": torch.tensor([3, tiny.VOCAB]),
    "negative": torch.tensor([3, -1]),
    "no row": torch.zeros(0, 4, dtype=torch.long),
    "no position": torch.zeros(1, 0, dtype=torch.long),
    "none at all": torch.tensor([], dtype=torch.long),
    "a number": torch.tensor(3),
    "three axes": torch.zeros(1, 1, 3, dtype=torch.long),
    "fractions": torch.tensor([1.5, 2.0]),
    "truth values": torch.tensor([True, False]),
    "an empty list": [],
    "words": ["The", "dog"],
    "uneven rows": [[1, 2], [3]],
}


@pytest.mark.parametrize("what", TOKENS)
def test_tokens_that_are_none(llama: Model, what: str) -> None:
    for act in (
        lambda: llama(TOKENS[what]),
        lambda: llama.capture(TOKENS[what], ["hook_embed"]),
        lambda: llama.generate(TOKENS[what], 2),
        lambda: wb.compare(llama, TOKENS[what], [], 2),
    ):
        assert "('')" not in refused(wb.model.PromptError, act)  # a token without a text is not quoted


def test_several_rows_where_one_prompt_is_wanted(llama: Model) -> None:
    assert "2" in refused(wb.model.PromptError, lambda: llama.generate(torch.ones(2, 3, dtype=torch.long), 2))


def test_masks_of_another_shape(llama: Model) -> None:
    tokens = torch.ones(2, 5, dtype=torch.long)
    for shape in ((2, 4), (1, 5), (5,), (2, 5, 1)):
        refused(wb.model.PromptError, lambda shape=shape: llama(tokens, mask=torch.ones(shape, dtype=torch.bool)))


SETTINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 0},
    {"max_new_tokens": -3},
    {"max_new_tokens": 2.5},
    {"max_new_tokens": "3"},
    {"max_new_tokens": None},
    {"max_new_tokens": True},
    {"temperature": -0.1},
    {"temperature": NAN},
    {"temperature": INF},
    {"temperature": "hot"},
    {"temperature": None},
    {"temperature": 1.0, "top_k": 0},
    {"temperature": 1.0, "top_k": -1},
    {"temperature": 1.0, "top_k": 2.5},
    {"temperature": 1.0, "top_k": "5"},
    {"temperature": 1.0, "top_p": 0.0},
    {"temperature": 1.0, "top_p": -0.5},
    {"temperature": 1.0, "top_p": 1.01},
    {"temperature": 1.0, "top_p": NAN},
    {"temperature": 1.0, "top_p": "most"},
    {"temperature": 1.0, "seed": -1},
    {"temperature": 1.0, "seed": 1.5},
    {"temperature": 1.0, "seed": "x"},
    {"temperature": 1.0, "seed": None},
    {"temperature": 1.0, "seed": 2**64},
]


@pytest.mark.parametrize(
    "how",
    [
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": "much"},
        {"min_new_tokens": -1},
        {"min_new_tokens": 1.5},
        {"stop": "end"},
        {"stop": [""]},
        {"stop": [3]},
        {"stop": 3},
    ],
    ids=str,
)
def test_settings_of_sampling_out_of_range(how: dict[str, Any]) -> None:
    refused(wb.model.PromptError, lambda: wb.model.Sampling(**how))


@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_settings_out_of_range(llama: Model, how: dict[str, Any]) -> None:
    name = list(how)[-1]
    assert name in refused(wb.model.PromptError, lambda: llama.generate("The dog", **how))
    if name != "max_new_tokens":
        refused(wb.model.PromptError, lambda: wb.model.Sampling(**how))


@pytest.mark.parametrize("length", [0, -1, 1.5, "3"])
def test_prompt_lengths_that_are_none(llama: Model, length: Any) -> None:
    assert "prompt_length" in refused(wb.model.PromptError, lambda: llama("The dog", prompt_length=length))


def test_text_for_a_model_without_tokenizer(tiny_cache: Path) -> None:
    bare = wb.load_model(tiny.build("llama"))
    for act in (
        lambda: bare("The dog"),
        lambda: bare.generate("The dog"),
        lambda: bare.chat("The dog"),
        lambda: bare.to_tokens("The dog"),
        lambda: bare.to_text([3]),
        lambda: bare.token_texts([3]),
        lambda: wb.decode_neurons(bare),
        lambda: wb.neurons.neurons_writing(bare, " dog"),
        lambda: bare.generate(torch.tensor([3]), 2, interventions=[wb.Ablate(F, "mean")]),
    ):
        assert "without a tokenizer" in refused(wb.model.PromptError, act)
    assert len(bare.generate(torch.tensor([3]), 2, interventions=[wb.Clamp(F, 3.0)]).tokens) <= 2


def test_chat_with_a_model_without_template(llama: Model) -> None:
    model = copy.copy(llama)
    model.tokenizer = tiny.tokenizer(chat=False)
    assert "no chat template" in refused(wb.model.PromptError, lambda: model.chat("hi"))


def test_chat_templates_that_refuse(llama: Model) -> None:
    """Some templates complain about the order of roles, in an exception of their own."""
    model = copy.copy(llama)
    model.tokenizer = copy.deepcopy(tiny.tokenizer())
    model.tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    assert "Roles must alternate" in refused(wb.model.PromptError, lambda: model.chat("hi"))


# --- edits from a file


def test_edits_made_for_another_model(llama: Model, zoo, tmp_path: Path) -> None:
    file = tmp_path / "edits.json"
    wb.interventions.save_interventions(file, llama, [wb.Clamp("neurons.0.up:3", 1.0)])
    said = refused(wb.model.EditError, lambda: wb.interventions.load_interventions(file, zoo["qwen2"]))
    assert llama.hash[:12] in said
    assert zoo["qwen2"].hash[:12] in said


def altered(model: Model, /, **said: Any) -> str:
    return json.dumps(json.loads(to_json(model, [wb.Clamp(F, 1.0)])) | said)


GOOD = to_dict(wb.Clamp(F, 1.0))
FILES: dict[str, Callable[[Model], str | bytes]] = {
    "empty": lambda m: "",
    "cut off": lambda m: to_json(m, [wb.Clamp(F, 1.0)])[:60],
    "no JSON": lambda m: "Clamp(neurons.1.gate:7, 20)",
    "no text": lambda m: b"\xff\xfe\x00\x01",
    "a list": lambda m: "[]",
    "a number": lambda m: "3",
    "null": lambda m: "null",
    "an empty object": lambda m: "{}",
    "another format": lambda m: altered(m, format=99),
    "no model": lambda m: altered(m, model=None),
    "a model as a word": lambda m: altered(m, model="llama"),
    "no hash": lambda m: altered(m, model={"name": m.name}),
    "null for the edits": lambda m: altered(m, interventions=None),
    "a number for the edits": lambda m: altered(m, interventions=5),
    "an object for the edits": lambda m: altered(m, interventions={"kind": "Clamp"}),
    "a word among the edits": lambda m: altered(m, interventions=["Clamp"]),
    "a number among the edits": lambda m: altered(m, interventions=[5]),
    "null among the edits": lambda m: altered(m, interventions=[GOOD, None]),
    "an unknown kind": lambda m: altered(m, interventions=[GOOD | {"kind": "Explode"}]),
    "no kind": lambda m: altered(m, interventions=[{"feature": F, "value": 1.0}]),
    "the parent of the kinds": lambda m: altered(m, interventions=[GOOD | {"kind": "FeatureIntervention"}]),
    "no feature": lambda m: altered(m, interventions=[{"kind": "Clamp", "value": 1.0}]),
    "no value": lambda m: altered(m, interventions=[{"kind": "Clamp", "feature": F}]),
    "an unknown setting": lambda m: altered(m, interventions=[GOOD | {"colour": "red"}]),
    "NaN": lambda m: altered(m, interventions=[GOOD | {"value": NAN}]),
    "infinity": lambda m: altered(m, interventions=[GOOD | {"value": INF}]),
    "a word for the value": lambda m: altered(m, interventions=[GOOD | {"value": "20"}]),
    "bad positions": lambda m: altered(m, interventions=[GOOD | {"positions": "last"}]),
    "positions as an object": lambda m: altered(m, interventions=[GOOD | {"positions": {"from": 3}}]),
    "positions as a fraction": lambda m: altered(m, interventions=[GOOD | {"positions": 1.5}]),
    "a feature as a number": lambda m: altered(m, interventions=[GOOD | {"feature": 7}]),
    "a direction of words": lambda m: altered(
        m, interventions=[{"kind": "Steer", "amount": 1.0, "hook_point": "hook_embed", "direction": ["a"]}]
    ),
    "a direction as a word": lambda m: altered(
        m, interventions=[{"kind": "Steer", "amount": 1.0, "hook_point": "hook_embed", "direction": "ab"}]
    ),
    "a direction as a number": lambda m: altered(
        m, interventions=[{"kind": "Steer", "amount": 1.0, "hook_point": "hook_embed", "direction": 3}]
    ),
    "a direction for a clamp": lambda m: altered(m, interventions=[GOOD | {"direction": [1.0]}]),
    "a direction too short": lambda m: altered(
        m, interventions=[{"kind": "Steer", "amount": 1.0, "hook_point": "hook_embed", "direction": [1.0]}]
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_hold_no_interventions(llama: Model, tmp_path: Path, what: str) -> None:
    content = FILES[what](llama)
    (tmp_path / "edits.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(wb.model.EditError, lambda: wb.interventions.load_interventions(tmp_path / "edits.json", llama))


def test_a_missing_file_of_interventions(llama: Model, tmp_path: Path) -> None:
    for name in ("nothing.json", "", "a/b/c.json"):
        refused(wb.model.EditError, lambda name=name: wb.interventions.load_interventions(tmp_path / name, llama))


def test_a_file_that_names_features_or_places_that_the_model_lacks(llama: Model, tmp_path: Path) -> None:
    file = tmp_path / "edits.json"
    for said, kind in (
        (GOOD | {"feature": "neurons.9.gate:7"}, wb.dictionaries.FeatureError),
        (GOOD | {"feature": "neurons.1.gate:48"}, wb.dictionaries.FeatureError),
        (GOOD | {"feature": "nonsense"}, wb.dictionaries.FeatureError),
        ({"kind": "Steer", "amount": 1.0, "hook_point": "hook_embd", "direction": [1.0] * 32}, wb.model.HookPointError),
    ):
        file.write_text(altered(llama, interventions=[said]))
        refused(kind, lambda: wb.interventions.load_interventions(file, llama))


@pytest.mark.parametrize(
    "said", [None, [], "Clamp", 3, {}, {"kind": None}, {"kind": ["Clamp"]}, {"kind": {}}], ids=repr
)
def test_data_that_is_no_intervention(said: Any) -> None:
    refused(wb.model.EditError, lambda: from_dict(said))


def test_an_intervention_without_a_setting_is_told_which() -> None:
    without = {name: value for name, value in GOOD.items() if name != "value"}
    assert "has no value" in refused(wb.model.EditError, lambda: from_dict(without))


# --- decoding and searching


@pytest.mark.parametrize(
    "how",
    [
        {"weights": "post"},
        {"weights": "Gate"},
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": tiny.VOCAB + 1},
        {"top_k": 2.5},
        {"top_k": "10"},
        {"scale": "big"},
        {"scale": None},
    ],
    ids=str,
)
def test_decodings_that_do_not_exist(llama: Model, how: dict[str, Any]) -> None:
    (name,) = how
    assert name in refused(ValueError, lambda: wb.decode_neurons(llama, **how))


@pytest.mark.parametrize("weights", ["post", "nose", None])
def test_weights_that_do_not_exist(llama: Model, weights: Any) -> None:
    refused(wb.model.ModelError, lambda: wb.neurons.neurons_writing(llama, " dog", weights))
    if weights is not None:
        refused(wb.model.ModelError, lambda: wb.neurons.token_scores(llama, wb.Feature.parse(F), weights))


@pytest.mark.parametrize(
    "how",
    [
        {"text": ""},
        {"text": "  "},
        {"text": "", "match": "exact"},
        {"text": tiny.VOCAB},
        {"text": -1},
        {"text": "dog", "match": "regex"},
        {"text": "dog", "sign": 0},
        {"text": "dog", "sign": 2},
        {"text": "dog", "layers": [3]},
        {"text": "dog", "layers": [0, -1]},
    ],
    ids=str,
)
def test_searches_that_make_no_sense(llama: Model, tiny_cache: Path, how: dict[str, Any]) -> None:
    table = wb.decode_neurons(llama, "gate", 5)
    refused(ValueError, lambda: table.search(**how))


@pytest.mark.parametrize(
    "text", ["my-sae:3", "neurons.x.gate:1", "neurons.3.gate:1", "neurons.0.gate:48", "neurons.².gate:1"]
)
def test_rows_that_a_table_lacks(llama: Model, tiny_cache: Path, text: str) -> None:
    table = wb.decode_neurons(llama, "gate", 5)
    refused(wb.dictionaries.FeatureError, lambda: table.row(wb.Feature.parse(text)))


def test_tables_that_do_not_compare(llama: Model, zoo, tiny_cache: Path) -> None:
    table, other = wb.decode_neurons(llama, "up", 5), wb.decode_neurons(zoo["qwen2"], "up", 5)
    refused(ValueError, lambda: wb.neurons.compare_decodings(table, other))
    words = copy.copy(table)
    words.vocabulary = [*table.vocabulary[:-1], "changed"]
    refused(ValueError, lambda: wb.neurons.compare_decodings(table, words))


def test_a_control_for_a_direction(llama: Model) -> None:
    steer = [wb.Steer.along("hook_embed", [1.0] * 32)]
    assert "names no feature" in refused(
        wb.model.EditError, lambda: wb.compare(llama, "The dog", steer, 2, control=True)
    )


# --- afterwards


def test_the_model_is_as_before_after_all_this(llama: Model) -> None:
    tokens = llama.to_tokens("The dog ran to")
    with torch.no_grad():
        expected = tiny.build("llama")(tokens).logits
    assert torch.allclose(llama(tokens), expected, atol=1e-5)


@pytest.mark.parametrize("kind", OWN)
def test_exceptions_print_their_sentence(kind: type[Exception]) -> None:
    assert str(kind("One sentence.")) == "One sentence."
    assert issubclass(kind, ValueError | KeyError)

"""Names of features, and interventions as JSON: what is written is read back the same."""

import json

import pytest
import torch

import workbench as wb
from workbench.interventions.saved import from_dict, from_json, to_dict, to_json

DOG = "neurons.29.gate:808"


@pytest.mark.parametrize(
    "text",
    [DOG, "neurons.0.up:0", "runs/my-sae:123", "a:b:7", "C:/runs/sae:4", "with space:12", "дом:3", "x:9999999999"],
)
def test_print_and_parse_are_inverse(text: str) -> None:
    feature = wb.Feature.parse(text)
    assert str(feature) == text
    assert wb.Feature.parse(str(feature)) == feature
    assert feature.dictionary == text.rpartition(":")[0]
    assert feature.index == int(text.rpartition(":")[2])


def test_parse_ignores_space_around() -> None:
    assert wb.Feature.parse(f"  {DOG}\n") == wb.Feature("neurons.29.gate", 808)


def test_equal_by_name_and_index_whatever_the_source() -> None:
    plain, sourced = wb.Feature("sae", 3), wb.Feature("sae", 3, source=object())
    assert plain == sourced
    assert hash(plain) == hash(sourced)
    assert plain != wb.Feature("sae", 4)
    assert plain != wb.Feature("sea", 3)
    assert len({plain, sourced, wb.Feature("sae", 4)}) == 2


def test_features_sort_by_dictionary_then_number() -> None:
    features = [wb.Feature("b", 1), wb.Feature("a", 10), wb.Feature("a", 9)]
    assert [str(feature) for feature in sorted(features)] == ["a:9", "a:10", "b:1"]


def test_a_feature_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        wb.Feature.parse(DOG).index = 3  # type: ignore[misc]


INTERVENTIONS = [
    wb.Clamp(DOG, 20.0),
    wb.Clamp(wb.Feature.parse(DOG), -3),
    wb.Clamp(DOG, 1 / 3, positions="prompt"),
    wb.Clamp(DOG, 1e-300, positions=[7, 3, 3]),
    wb.Scale(DOG, 0.5, positions="generated"),
    wb.Scale(DOG, 1),
    wb.Ablate(DOG),
    wb.Ablate(DOG, "mean"),
    wb.Ablate(DOG, "mean", 0.25, positions=4),
    wb.Steer(DOG, -2.5),
    wb.Steer.along("blocks.3.hook_resid_post", torch.linspace(-1, 1, 7), 0.1, positions=[0]),
]


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=str)
def test_json_round_trip_of_each_kind(intervention: wb.Clamp) -> None:
    said = json.loads(json.dumps(to_dict(intervention), allow_nan=False))
    again = from_dict(said)
    assert again == intervention
    assert type(again) is type(intervention)
    assert to_dict(again) == said


def test_positions_are_brought_into_one_form() -> None:
    assert wb.Clamp(DOG, 1, positions=[7, 3, 3]) == wb.Clamp(DOG, 1, positions=(3, 7))
    assert wb.Clamp(DOG, 1, positions=4).positions == (4,)
    assert wb.Clamp(DOG, 1, positions=range(2, 5)).positions == (2, 3, 4)
    assert wb.Clamp(DOG, 1).positions == "all"


def test_direction_of_heads_is_kept_in_order() -> None:
    direction = torch.arange(6.0).view(2, 3)
    assert wb.Steer.along("blocks.0.attn.hook_z", direction).direction == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)


def test_file_round_trip(llama: wb.model.LanguageModel, tmp_path) -> None:
    edits = [
        wb.Clamp("neurons.1.gate:7", 0.1 + 0.2),
        wb.Scale("neurons.0.up:3", -1.5, positions=[1, 2]),
        wb.Ablate("neurons.2.post:47", "mean", positions="generated"),
        wb.Steer.along("blocks.1.hook_resid_mid", torch.randn(32, generator=torch.Generator().manual_seed(0)), 2.0),
    ]
    file = tmp_path / "deep" / "edits.json"
    wb.interventions.save_interventions(file, llama, edits)
    assert wb.interventions.load_interventions(file, llama) == edits
    assert json.loads(file.read_text())["model"]["hash"] == llama.hash
    assert [path.name for path in file.parent.iterdir()] == ["edits.json"], "a temporary file was left"
    wb.interventions.save_interventions(file, llama, edits[:1])
    assert wb.interventions.load_interventions(file, llama) == edits[:1]


def test_loaded_edits_steer_the_same(llama: wb.model.LanguageModel) -> None:
    edits = [wb.Clamp("neurons.1.gate:7", 9.0), wb.Steer("neurons.0.post:3", 4.0, positions="generated")]
    tokens = llama.to_tokens("The dog ran to the river")
    with llama.intervening(edits):
        first = llama(tokens, prompt_length=3)
    with llama.intervening(from_json(llama, to_json(llama, edits))):
        second = llama(tokens, prompt_length=3)
    assert torch.equal(first, second)

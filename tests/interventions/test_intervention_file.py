"""A new intervention is one file, with no edit elsewhere: saving, the Steer page, `bake` and the laws find it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from intervention_laws import LAWS, Model, logits
from pairs import TOKENS, latents

import workbench as wb
from workbench.interventions import INTERVENTIONS, FeatureIntervention, choices
from workbench.interventions.choices import choice_of
from workbench.interventions.features import dictionary_of
from workbench.interventions.saved import from_json, to_json

pytestmark = pytest.mark.usefixtures("tiny_cache")

HALVE = '''"""Halve: a feature is divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from workbench.core.arguments import Argument
from workbench.dictionaries.codes import Change
from workbench.dictionaries.protocol import Dictionary
from workbench.interventions.affine import Affine
from workbench.interventions.protocol import FeatureIntervention
from workbench.model.language_model import LanguageModel


@dataclass(frozen=True)
class Halve(FeatureIntervention):
    """Divide the feature by two, or by another number."""

    title: ClassVar[str] = "Halve"
    about: ClassVar[str] = "**Halve** divides the feature."
    arguments: ClassVar[tuple[Argument, ...]] = (
        Argument("by", "Divide by", 2.0, low=0.5, high=8.0, neutral=1.0, reach=8.0, step=0.5),
    )

    by: float = 2.0

    @classmethod
    def fits(cls, dictionary: Dictionary) -> bool:
        return not dictionary.discrete

    def change(self, model: LanguageModel, dictionary: Dictionary) -> Change:
        return self.value_change(lambda old: old / self.by)

    def as_affine(self) -> Affine:
        return Affine(1 / self.by, 0.0)
'''
CAP = (
    HALVE.replace("Halve", "Cap")
    .replace("lambda old: old / self.by", "lambda old: old.clamp(max=1 / self.by)")
    .replace("low=0.5, high=8.0, neutral=1.0, ", "")
    .split("    def as_affine")[0]
)
"""One that is not affine."""


@pytest.fixture(params=["Halve", "Cap"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[FeatureIntervention]]:
    """The class of a file that is imported."""
    name = request.param
    (tmp_path / f"{name}.py").write_text({"Halve": HALVE, "Cap": CAP}[name])
    spec = importlib.util.spec_from_file_location(f"own_{name}", tmp_path / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield getattr(module, name)
    del INTERVENTIONS[name.lower()], sys.modules[spec.name]


def test_saving_finds_it(llama: Model, kind: type[FeatureIntervention], tmp_path: Path) -> None:
    sae = latents("on the residual stream")
    edits = [kind("neurons.1.up:7"), kind(sae.feature(3), positions="prompt")]  # type: ignore[arg-type]
    wb.interventions.save_interventions(tmp_path / "edits.json", llama, edits)
    assert wb.interventions.load_interventions(tmp_path / "edits.json", llama, [sae]) == edits


def test_a_misspelt_setting_is_named(llama: Model) -> None:
    text = to_json(llama, [wb.Scale("neurons.1.up:7", 2.0)])
    with pytest.raises(wb.model.EditError, match=r"Scale has no setting 'facto', only .*factor"):
        from_json(llama, text.replace("factor", "facto"))


def test_the_steer_page_offers_it(llama: Model, kind: type[FeatureIntervention]) -> None:
    neurons, book = dictionary_of(llama, "neurons.1.up:7"), wb.Codebook(32, 8, hook_point="blocks.1.hook_resid_post")
    offered = {one.title: one for one in choices(neurons)}
    assert next(iter(offered)) == "Clamp"
    assert kind.title not in [one.title for one in choices(book)]
    choice = offered[kind.title]
    assert choice.strength == kind.arguments[0]
    made = choice.make(neurons.feature(7), 4.0, "prompt")
    assert made == kind(neurons.feature(7), 4.0, positions="prompt")  # type: ignore[call-arg]
    assert choice_of(made, neurons) == choice


def test_its_arguments_are_checked(kind: type[FeatureIntervention]) -> None:
    for value in (float("nan"), "2", True, 1e39):
        with pytest.raises(wb.model.EditError, match="by is a"):
            kind("neurons.1.up:7", value)  # type: ignore[arg-type, call-arg]
    if kind.title == "Halve":
        with pytest.raises(wb.model.EditError, match=r"by is a number from 0\.5 to 8, not 9"):
            kind("neurons.1.up:7", 9)  # type: ignore[arg-type, call-arg]


def test_bake_writes_it_where_it_is_affine(llama: Model, kind: type[FeatureIntervention]) -> None:
    one = kind("neurons.1.up:7", 4.0)  # type: ignore[arg-type, call-arg]
    if kind.title == "Cap":
        with pytest.raises(wb.surgery.BakeError, match="not linear"):
            wb.bake(llama, [one])
        return
    child = wb.bake(llama, [one])
    wanted = logits(llama, [one])
    assert float((child.model(TOKENS) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    old, new = (m.network.module.get_parameter("model.layers.1.mlp.up_proj.weight") for m in (llama, child.model))
    assert torch.equal(new[7], old[7] / 4)
    with pytest.raises(wb.surgery.BakeError, match="how active the feature is"):
        wb.bake(llama, [replace(one, feature=latents("on the residual stream").feature(3))])


def test_it_keeps_the_laws(llama: Model, kind: type[FeatureIntervention]) -> None:
    assert INTERVENTIONS[kind.__name__.lower()] is kind
    for law in LAWS:
        law(llama, kind)


def test_two_of_one_name_are_refused(kind: type[FeatureIntervention]) -> None:
    with pytest.raises(TypeError, match=f"Two interventions are called {kind.__name__}"):
        type(kind.__name__, (FeatureIntervention,), {"title": "Other", "__module__": "elsewhere"})

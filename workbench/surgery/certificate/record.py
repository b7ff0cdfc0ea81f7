"""What a certificate records: plain data, JSON and Markdown of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Len
from pydantic import ConfigDict
from typing_extensions import TypedDict

from workbench.core.display import Tabular
from workbench.core.forms import as_form, read_json
from workbench.core.text import code_span, plain
from workbench.surgery.child_building import SurgeryError
from workbench.surgery.notes import ModelName, Step, with_current_names

AGREES = 1e-4
"""The largest difference of a logit at which two models agree."""
DRAWING = ("dare", "merge")
"""Operations whose weights depend on random masks, and so on the seed."""
JSON, MARKDOWN = "certificate.json", "certificate.md"
"""Names of a certificate's files."""


class Made(TypedDict):
    """How a certificate was measured; beside the command it holds the settings."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    command: str


class Form(TypedDict):
    """A certificate as JSON."""

    parent: ModelName
    child: ModelName
    steps: list[Step]
    max_logit_difference: float | None
    differences: list[float | None]
    perplexity_before: float
    perplexity_after: float
    kl: float
    same_top: float
    tasks: dict[str, Annotated[list[float], Len(2, 2)]]
    corpus: ModelName
    predictions: int
    made: Made
    dtype: NotRequired[str]
    rounding: NotRequired[float | None]


@dataclass(frozen=True)
class Certificate(Tabular):
    """The steps of a changed model, their exactness and their cost."""

    parent: dict[str, str]
    """Name and hash of the model at the start."""
    child: dict[str, str]
    """Name and hash of the changed model."""
    steps: list[dict[str, Any]] = field(repr=False)
    """The steps, with the hash of each."""
    max_logit_difference: float | None
    """The largest difference of a logit between a changed model and its parent under the interventions that it stands
    for; None where no step stands for interventions."""
    differences: list[float | None] = field(repr=False)
    """The same for each step that was taken in this session."""
    perplexity_before: float
    perplexity_after: float
    kl: float
    """KL(start ‖ changed) in nats, mean over predictions."""
    same_top: float
    """Share of the predictions whose likeliest token is the same before and after."""
    tasks: dict[str, tuple[float, float]]
    """Scores before and after, by task."""
    corpus: dict[str, str]
    """Name and hash of the text."""
    predictions: int
    """That perplexity and KL are means over."""
    made: dict[str, Any] = field(repr=False)
    """Versions, command and seed of the measurement."""
    dtype: str = "float32"
    """The type in which both models computed; certificates of earlier versions are all in float32."""
    rounding: float | None = None
    """In 16 bits the largest difference between a logit of the changed model and what its weights compute in float32;
    None in float32."""

    @property
    def unmeasured(self) -> bool:
        """Whether a step stands for interventions that were not measured, since the model was opened from a folder."""
        earlier = len(self.steps) - len(self.differences)
        known = [None] * earlier + list(self.differences)
        return any(step.get("edits") and one is None for step, one in zip(self.steps, known, strict=True))

    @property
    def exact(self) -> bool | None:
        """Whether the weights compute the interventions, to 1e-4 in every logit; None without interventions, where some
        were not measured, or in 16 bits, where rounding hides it."""
        if self.rounding is not None:
            return None
        if self.max_logit_difference is None or (self.unmeasured and self.max_logit_difference <= AGREES):
            return None
        return self.max_logit_difference <= AGREES

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each measure, before and after."""
        yield {"measure": "perplexity", "before": self.perplexity_before, "after": self.perplexity_after}
        yield from ({"measure": name, "before": one, "after": two} for name, (one, two) in self.tasks.items())

    def _facts(self) -> Mapping[str, object]:
        return {
            "child": self.child["name"],
            "parent": self.parent["name"],
            "steps": [step["operation"] for step in self.steps],
            "exactness": self.exactness(),
            "KL": self.kl,
            "same top token": self.same_top,
            "perplexity": [self.perplexity_before, self.perplexity_after],
            "measured on": f"{self.predictions:,} predictions in {self.corpus['name']}",
        }

    def to_dict(self) -> dict[str, Any]:
        """The certificate as plain data."""
        return asdict(self) | {"exact": self.exact, "tasks": {name: list(two) for name, two in self.tasks.items()}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_dict`.

        Operations that bear a former name get their present one.

        Raises:
            SurgeryError: a key is missing or of another type, or the numbers contradict one another.
        """
        complaint = "This is not a certificate"
        form: dict[str, Any] = dict(as_form(content, Form, SurgeryError, complaint))
        known = [one for one in form["differences"] if one is not None]
        if not form["steps"] or len(form["differences"]) > len(form["steps"]):
            raise SurgeryError(
                f"{complaint}: it has {len(form['differences'])} differences for {len(form['steps'])} steps."
            )
        if form["max_logit_difference"] != (max(known) if known else None):
            raise SurgeryError(f"{complaint}: max_logit_difference is not the largest of its differences.")
        form["steps"] = with_current_names(form["steps"])
        form["tasks"] = {name: tuple(two) for name, two in form["tasks"].items()}
        return cls(**{one.name: form[one.name] for one in fields(cls) if one.name in form})

    def to_markdown(self) -> str:
        """The certificate as Markdown."""
        lines = [f"# {plain(self.child['name'])}", "", "| | |", "|---|---|"]
        lines += [f"| made from | {plain(self.parent['name'])}, weights {code_span(self.parent['hash'])} |"]
        lines += [f"| weights | {code_span(self.child['hash'])} |", f"| computed in | {plain(self.dtype)} |", ""]
        lines += ["## What was done", ""]
        for number, step in enumerate(self.steps, 1):
            words = "; ".join(_settings(step))
            lines.append(f"{number}. **{plain(step['operation'])}**: {words} (edit {code_span(step['edit_hash'])})")
        lines += ["", "## What the weights do", "", self.exactness(), "", "## What it costs", ""]
        lines += ["| | before | after |", "|---|---|---|"]
        lines += [f"| perplexity | {self.perplexity_before:.4g} | {self.perplexity_after:.4g} |"]
        lines += [f"| {plain(name)} | {a:.4g} | {b:.4g} |" for name, (a, b) in self.tasks.items()]
        lines += ["", f"KL from the predictions before to those after: {self.kl:.4g} nats. The likeliest next token is"]
        lines += [f"the same for {self.same_top:.1%} of the predictions."]
        lines += ["", f"Measured on {self.predictions:,} predictions in {plain(self.corpus['name'])}"]
        lines += [f"({code_span(self.corpus['hash'])}), by {code_span(self.made['command'])}."]
        return "\n".join([*lines, ""])

    def exactness(self) -> str:
        """The exactness in a sentence or two."""
        if self.unmeasured:
            far = self.max_logit_difference
            since = "" if far is None else f" In the steps since then no logit is further than {far:.2g} from it."
            return (
                "It was not measured how exactly the weights do what the interventions of earlier steps did: the model "
                f"was opened from its folder, without them.{since}"
            )
        if self.max_logit_difference is None:
            return "No step stands for interventions, so there is nothing that the weights should do exactly."
        earlier = len(self.steps) - len(self.differences)
        numbers = [earlier + at for at, one in enumerate(self.differences, 1) if one is not None]
        alone = len(self.steps) == 1
        of = "that of the parent under the interventions" if alone else "that of the model before under these"
        if self.max_logit_difference == 0:
            words = f"every logit is the same to the bit as {of}."
        elif self.rounding is not None:
            words = (
                f"no logit is further than {self.max_logit_difference:.2g} from {of}, both in {self.dtype}, whose "
                f"rounding alone moves the changed model's logits by up to {self.rounding:.2g}: so far they are from "
                "what its weights compute in float32."
            )
        else:
            words = (
                f"no logit is further than {self.max_logit_difference:.2g} from {of} "
                f"({'within' if self.exact else 'more than'} the {AGREES:g} that is wanted)."
            )
        if alone:
            return words[0].upper() + words[1:]
        others = [at for at in range(1, len(self.steps) + 1) if at not in numbers]
        rest = f" {_standing(others)} for none: only the costs say what came of that." if others else ""
        return f"{_standing(numbers)} for interventions: after {'each' if len(numbers) > 1 else 'it'} {words}{rest}"


def _settings(step: Mapping[str, Any]) -> list[str]:
    """The settings of a step in words, as Markdown; a recipe is JSON, so that it shows what holds what."""
    ours = {"operation", "edit_hash", "parent", "hash", "own_tensors", "config", "seed", "versions", "command"}
    if step["operation"] in DRAWING:
        ours.remove("seed")
    words = []
    for key, value in step.items():
        if key == "edits":
            words += [plain(_short(one)) for one in value]
        elif key == "recipe":
            words.append(f"recipe {code_span(json.dumps(value, ensure_ascii=False))}")
        elif key not in ours and value not in (None, [], {}, ""):
            words.append(plain(f"{key} {_short(value)}"))
    return words or ["nothing"]


def _standing(steps: Sequence[int]) -> str:
    """As in "Steps 1, 2 and 4 stand"."""
    *first, last = map(str, steps or ["?"])
    return f"Steps {', '.join(first)} and {last} stand" if first else f"Step {last} stands"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(
            _short(one) if key in ("kind", "feature") else f"{key} {_short(one)}" for key, one in value.items()
        )
    if isinstance(value, list):
        return f"{len(value)} values" if len(value) > 12 else ", ".join(map(_short, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_certificate(path: Path) -> Certificate:
    """The certificate in a JSON file, whose numbers may be infinite.

    Raises:
        SurgeryError: the file is missing or damaged.
    """
    try:
        return Certificate.from_dict(read_json(path, dict[str, Any], SurgeryError, "a certificate", infinite=True))
    except SurgeryError as error:
        reason = str(error).rstrip(".")
        raise SurgeryError(f"The certificate {path} can't be read ({reason}); copy the folder again.") from error

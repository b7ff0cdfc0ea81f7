"""The trials of a search on disk: a JSON file, written anew after each trial."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Len
from typing_extensions import TypedDict

from workbench.core.files import replacing
from workbench.core.forms import parse_json, read_text
from workbench.core.hashing import hash_of
from workbench.steering.errors import SteeringError
from workbench.steering.measures import OWN, Measure, plain_prompts
from workbench.steering.result import Act

FORMAT = 1


class Record(TypedDict):
    """A trial."""

    hook_point: str
    how: str
    """Method and position."""
    act: Act
    strength: Annotated[float, Ge(0)]
    effect: float | None
    """None where the model could not run under it."""
    cost: float | None
    interval: Annotated[list[float], Len(2, 2)] | None


class File(TypedDict):
    """A checkpoint."""

    format: int
    search: str
    """The hash of all that decides the trials."""
    trials: list[Record]


class Checkpoint:
    """The file of a search.

    Args:
        path: of the file; None keeps nothing.
        search: what decides the trials, as plain data.
        effect: a measure.
        cost: a measure.

    Attributes:
        records: the trials that the file held.

    Raises:
        SteeringError: a file of another search, or measures that a file can't tell from others.
    """

    def __init__(self, path: str | Path | None, search: list[Any], effect: Measure, cost: Measure):
        self.path = None if path is None else Path(path)
        self.records: list[Record] = []
        if self.path is None:
            return
        if not isinstance(effect, OWN) or not isinstance(cost, OWN):
            raise SteeringError(
                "A checkpoint can't tell functions apart; take measures of wb.steering, such as WordProbability, or "
                "search without a checkpoint."
            )
        self.hash = hash_of([FORMAT, search, *(_described(one) for one in (effect, cost))])
        if self.path.exists():
            text = read_text(self.path, SteeringError, "a checkpoint of a search")
            content = parse_json(text, File, SteeringError, f"{self.path} is no checkpoint of a search")
            if content["format"] != FORMAT or content["search"] != self.hash:
                raise SteeringError(f"{self.path} holds trials of another search; name another file, or remove it.")
            self.records = content["trials"]

    def write(self, records: list[Record]) -> None:
        """Put the trials in the file's place; nothing without a path."""
        if self.path is None:
            return
        content: File = {"format": FORMAT, "search": self.hash, "trials": records}
        with replacing(self.path, SteeringError, form=File) as temporary:
            temporary.write_text(json.dumps(content, allow_nan=False))


def _described(measure: Any) -> list[Any]:
    assert is_dataclass(measure)
    fields = {name: getattr(measure, name) for name in measure.__dataclass_fields__}
    if "prompts" in fields or "texts" in fields:
        name = "prompts" if "prompts" in fields else "texts"
        fields[name] = plain_prompts(fields[name])
    return [type(measure).__name__, {name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()}]

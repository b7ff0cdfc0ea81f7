"""The parameters of a merge: numbers or truth values, filtered by the names of tensors and interpolated over layers.

A setting is a value, a list of values that is spread over the layers (a gradient), or a list of
`{filter: part of a tensor's name, value: value or gradient}`, of which the first that fits counts. The rules are those
of mergekit 0.1.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from workbench.core.type_words import shown
from workbench.surgery.child_building import SurgeryError

SCALAR = (bool, int, float, str)
"""Types of a single value; YAML 1.1 reads `1e-3` as a text, which counts as its number."""
_LAX: dict[str, TypeAdapter[Any]] = {"number": TypeAdapter(float), "yes": TypeAdapter(bool)}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        per: whether one value counts for all models of a tensor, or each model has its own, or each but the base.
        default: its value where the recipe has none; None where it is needed, unless it is `free`.
        kind: a number, or True or False.
        low, high: ends of a number's range.
        free: whether it may be left out although it has no default.
    """

    per: Literal["merge", "model", "other"]
    default: float | bool | None = None
    kind: Literal["number", "yes"] = "number"
    low: float = -1e6
    high: float = 1e6
    free: bool = False

    def value(self, name: str, raw: Any) -> Any:
        """A single value of a recipe.

        Raises:
            SurgeryError: it is of another kind or out of range.
        """
        try:
            found = _LAX[self.kind].validate_python(raw)
        except ValidationError:
            words = "True or False" if self.kind == "yes" else "a number"
            raise SurgeryError(f"{name} is {words} in a recipe, not {shown(raw)}.") from None
        if self.kind == "number" and not (math.isfinite(found) and self.low <= found <= self.high):
            raise SurgeryError(f"{name} is a number from {self.low:g} to {self.high:g}, not {shown(raw)}.")
        return found


def check_settings(settings: Any, known: Mapping[str, Parameter], method: str, where: str) -> dict[str, Any]:
    """The `parameters` of one place of a recipe, each in a form that `resolve` reads.

    Args:
        settings: as the recipe has them.
        known: the parameters of the method.
        method: its name.
        where: the place, for the sentences: "models[0]"; empty at the top.

    Raises:
        SurgeryError: an unknown parameter, one that has no effect at this place, or a value of another form.
    """
    place = f"{where}.parameters" if where else "parameters"
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise SurgeryError(f"{place} is a mapping from names to values, not {shown(settings)}.")
    of_model = where.startswith("models") or ".sources" in where
    for name, setting in settings.items():
        if name not in known:
            raise SurgeryError(f"{place}.{shown(name)[1:-1]} is not read: {method} has {', '.join(known)}.")
        if of_model and known[name].per == "merge":
            raise SurgeryError(
                f"{place}.{name} has no effect: {name} counts for all models of {method}; move it to the recipe's own "
                "parameters."
            )
        _check_setting(setting, known[name], f"{place}.{name}")
    return dict(settings)


def _check_setting(setting: Any, known: Parameter, place: str) -> None:
    if isinstance(setting, SCALAR):
        known.value(place, setting)
    elif isinstance(setting, Mapping):
        _check_condition(setting, known, place)
    elif isinstance(setting, list | tuple):
        mappings = [isinstance(one, Mapping) for one in setting]
        if any(mappings) and not all(mappings):
            raise SurgeryError(f"{place} has values and filters in one list; write a filter for each, or none.")
        for number, one in enumerate(setting):
            if isinstance(one, Mapping):
                _check_condition(one, known, f"{place}[{number}]")
            elif isinstance(one, SCALAR):
                known.value(f"{place}[{number}]", one)
            else:
                raise SurgeryError(f"{place}[{number}] is a value or a filter with a value, not {shown(one)}.")
    else:
        raise SurgeryError(f"{place} is a value, a list of values, or a list of filters, not {shown(setting)}.")


def _check_condition(condition: Mapping[str, Any], known: Parameter, place: str) -> None:
    for key in condition:
        if key not in ("filter", "value"):
            raise SurgeryError(f"{place}.{shown(key)[1:-1]} is not read: a filter has `filter` and `value`.")
    if "value" not in condition:
        raise SurgeryError(f"{place} has no value.")
    if not isinstance(condition.get("filter"), str | None):
        raise SurgeryError(f"{place}.filter is a part of a tensor's name, not {shown(condition['filter'])}.")
    value = condition["value"]
    many = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, Mapping) for one in many):
        raise SurgeryError(f"{place}.value is a value or a list of values, and holds no filters of its own.")
    _check_setting(value, known, f"{place}.value")


@dataclass(frozen=True)
class At:
    """Where a parameter counts.

    Attributes:
        tensor: the name of the tensor, which filters look into.
        depth: of its layer among those of the slice, from 0 to 1; it decides values of gradients.
        places: settings, the nearest first.
    """

    tensor: str
    depth: float
    places: tuple[Mapping[str, Any], ...]


def resolve(name: str, known: Parameter, where: At) -> Any:
    """The value of a parameter for one tensor: that of the first settings that have one.

    Raises:
        SurgeryError: it is needed and has no value.
    """
    for place in where.places:
        if name in place:
            found = _evaluated(name, known, place[name], where)
            if found is not None:
                return found
    if known.default is None and not known.free:
        raise SurgeryError(f"The recipe has no {name} for every model's {where.tensor}; add it to its parameters.")
    return known.default


def _evaluated(name: str, known: Parameter, setting: Any, where: At) -> Any:
    """The value of a setting for one tensor; None where no filter fits, or a list is empty."""
    if isinstance(setting, SCALAR):
        return known.value(name, setting)
    conditions = [setting] if isinstance(setting, Mapping) else list(setting)
    if not conditions:
        return None
    if not isinstance(conditions[0], Mapping):
        return _between(name, known, conditions, where.depth)
    for one in conditions:
        wanted = one.get("filter")
        if wanted in (None, "*") or wanted in where.tensor:
            return _evaluated(name, known, one["value"], where)
    return None


def _between(name: str, known: Parameter, points: Sequence[Any], depth: float) -> Any:
    """The value of a gradient: linear between numbers; truth values hold until the next."""
    values = [known.value(name, one) for one in points]
    at = depth * (len(values) - 1)
    first = int(at)
    if known.kind == "yes":
        return values[first]
    share = at - first
    return known.value(name, (1 - share) * values[first] + share * values[min(first + 1, len(values) - 1)])

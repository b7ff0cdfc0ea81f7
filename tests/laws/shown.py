"""What results show of themselves: a short `repr`, HTML without the markup of any text, tables, figures."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from typing import Any, Literal, get_origin

import torch

import workbench as wb
from workbench.core.display import Rows, Shown

LONGEST = 500
"""Characters of a `repr`."""
MARK = "<img src=x onerror=alert(1)>&lt;b&gt;\"'</td></table>\n"
"""A token of somebody's tokenizer, a label, a name."""
TAGS = {"div": {"style"}, "b": set(), "span": {"style", "title"}, "table": set(), "tr": set()}
TAGS |= {"td": {"style", "title"}, "th": {"style"}}
"""What our HTML consists of."""


ARGUMENTS: dict[str, Callable[[Any], Any]] = {"layer": lambda it: it.layers[0], "head": lambda it: 0}
"""Of figures, from their results."""


class _Reader(HTMLParser):
    """Finds tags and attributes that are not ours, and tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag not in TAGS or {name for name, _ in attrs} - TAGS[tag]:
            self.wrong.append(f"<{tag} {attrs}>")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.text += data


def html_faults(html: str) -> list[str]:
    """Tags and attributes that are not ours, and tags left open."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return [*reader.wrong, *(f"<{tag}> is open" for tag in reader.open)]


def text_of(html: str) -> str:
    """What a browser shows of it."""
    reader = _Reader()
    reader.feed(html)
    return reader.text


def texts_in(value: Any) -> Iterator[str]:
    """Every text of a figure as plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from texts_in(one)
    elif isinstance(value, list | tuple) or hasattr(value, "tolist"):
        for one in value if isinstance(value, list | tuple) else value.tolist():
            yield from texts_in(one)


def parts_of(value: Any, depth: int = 3) -> Iterator[Any]:
    """The package's own objects in a result: itself, members, fields."""
    if type(value).__module__.startswith("workbench."):
        yield value
    if depth == 0:
        return
    inner: list[Any] = []
    if isinstance(value, list | tuple):
        inner = list(value[:3])
    elif isinstance(value, Mapping):
        inner = list(value.values())[:3]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, one.name) for one in dataclasses.fields(value)]
    for one in inner:
        yield from parts_of(one, depth - 1)


def marked(value: Any, depth: int = 4) -> Any:
    """The same with `MARK` in the place of every text that is not one of a few words."""
    if isinstance(value, str):
        return MARK
    if isinstance(value, wb.Feature):
        return wb.Feature(MARK, value.index)
    for kind, change in OBJECTS.items():
        if isinstance(value, kind):
            other = copy.copy(value)
            change(other)
            return other
    return _marked_inside(value, depth) if depth else value


def _marked_inside(value: Any, depth: int) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(marked(one, depth - 1) for one in value)
    if isinstance(value, dict):
        return {key: marked(one, depth - 1) for key, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _marked_fields(value, depth)
    return value


def _mark_model(model: Any) -> None:
    model.name = MARK
    model.token_texts = lambda ids: [MARK] * torch.as_tensor(ids).numel()


def _mark_dictionary(dictionary: Any) -> None:
    dictionary.name = dictionary.reads = dictionary.writes = MARK


def _mark_table(table: Any) -> None:
    table.vocabulary = [MARK] * len(table.vocabulary)


OBJECTS: dict[type, Callable[[Any], None]] = {
    wb.model.LanguageModel: _mark_model,
    wb.dictionaries.Dictionary: _mark_dictionary,
    wb.neurons.NeuronTable: _mark_table,
}
"""What is no dataclass, and how its texts are replaced in a copy."""


def _marked_fields(value: Any, depth: int) -> Any:
    other = copy.copy(value)
    forms = typing.get_type_hints(type(value))
    for one in dataclasses.fields(value):
        if get_origin(forms.get(one.name)) is not Literal:
            object.__setattr__(other, one.name, marked(getattr(value, one.name), depth - 1))
    return other


def faults(key: str, result: Any, known: set[type]) -> list[str]:
    """What is wrong with how a result shows itself; each class is looked at once."""
    found = []
    for one in parts_of(result):
        if len(repr(one)) > LONGEST:
            found.append(f"{key}: the repr of a {type(one).__name__} has {len(repr(one)):,} characters")
        if isinstance(one, Shown) and type(one) not in known:
            known.add(type(one))
            try:
                wrong = list(_faults(one))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                wrong = [f"{type(error).__name__}: {error}"]
            found += [f"{key}: {type(one).__name__}: {fault}" for fault in wrong]
    return found


def _faults(one: Shown) -> Iterator[str]:
    other = marked(one)
    for it in (one, other):
        yield from html_faults(it._repr_html_())
        if hasattr(it, "to_pandas"):
            table = it.to_pandas()
            if not len(table.columns) and not isinstance(it, Rows):
                yield "its table has no columns"
        if hasattr(it, "figure"):
            how = {name: ARGUMENTS[name](it) for name in inspect.signature(it.figure).parameters}
            drawn = it.figure(**how).to_dict()
            yield from (f"markup in its figure: {text}" for text in texts_in(drawn) if "<img" in text)

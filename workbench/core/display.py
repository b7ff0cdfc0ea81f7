"""How results show themselves: in a short `repr`, as HTML in a notebook, and as a table of pandas.

A result derives from `Shown`, or from `Tabular` where it is a table; what it says of itself is then made from its
fields. It overrides `_facts` or `_parts` where that is not enough. Functions return `Rows` where they return a list of
results. pandas is imported where a table is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

from workbench.core import markup
from workbench.core.text import counted

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

T = TypeVar("T")
LONGEST = 400
"""Characters of a `repr`."""


class Shown:
    """A result that shows itself."""

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__repr__ is Shown.__repr__:
            cls.__repr__ = Shown.__repr__  # a dataclass makes its own unless the class itself holds one

    def _facts(self) -> Mapping[str, object]:
        """What is said of it: the fields that a dataclass shows."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.repr}

    def _parts(self) -> Iterator[str]:
        """HTML below the facts: a table of each list of records."""
        for name, value in self._facts().items():
            if are_records(value):
                yield markup.table(map(record_of, value), name.replace("_", " "))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={_value(value)}" for name, value in self._facts().items())
        text = f"{type(self).__name__}({facts})"
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]}…)"

    def _repr_html_(self) -> str:
        said = {name: value for name, value in self._facts().items() if not are_records(value)}
        return markup.box(type(self).__name__, markup.facts(said), *self._parts())


class Tabular(Shown):
    """A result that is a table."""

    __slots__ = ()

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows of the table, each with the same keys."""
        raise NotImplementedError

    def to_pandas(self) -> pd.DataFrame:
        """The table as a DataFrame."""
        return _frame(self.records())

    def _parts(self) -> Iterator[str]:
        yield markup.table(self.records())


class Rows(list[T], Shown):
    """A list of results, which shows itself as a table."""

    def to_pandas(self) -> pd.DataFrame:
        """A row for each result: the fields that it shows, those of a result inside as `outer_inner`."""
        return _frame(map(record_of, self))

    @overload
    def __getitem__(self, place: SupportsIndex) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Rows[T]: ...
    def __getitem__(self, place: Any) -> Any:
        one = super().__getitem__(place)
        return Rows(one) if isinstance(place, slice) else one

    def __repr__(self) -> str:
        first = [repr(one) for one in itertools.islice(self, 3)]
        text = "[" + ",\n ".join(one if len(one) <= 120 else f"{one[:119]}…" for one in first)
        return f"{text},\n … {len(self):,} in all]" if len(self) > 3 else f"{text}]"

    def _repr_html_(self) -> str:
        return markup.box(counted(len(self), "row"), markup.table(map(record_of, self)))


def record_of(result: object) -> dict[str, Any]:
    """The fields that a result shows, as plain data; those of a result inside are named `outer_inner`."""
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items()}
    if isinstance(result, tuple):
        return {str(place): _plain(value) for place, value in enumerate(result)}
    if not dataclasses.is_dataclass(result):
        return {"value": _plain(result)}
    record: dict[str, Any] = {}
    for one in dataclasses.fields(result):
        value = getattr(result, one.name)
        if not one.repr:
            continue
        if isinstance(value, Shown) and dataclasses.is_dataclass(value):
            record |= {f"{one.name}_{name}": inner for name, inner in record_of(value).items()}
        else:
            record[one.name] = _plain(value)
    return record


def columns(**lists: Iterable[object]) -> Iterator[dict[str, Any]]:
    """The rows of a table from its columns, by name."""
    return (dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True))


def cells(axes: Sequence[str], **tensors: Tensor) -> Iterator[dict[str, Any]]:
    """A row for each place of tensors of one shape.

    Args:
        axes: the names of their axes, which are columns too.
        tensors: by column.
    """
    first = next(iter(tensors.values()))
    places = itertools.product(*map(range, first.shape))
    for place, *values in zip(places, *(one.flatten().tolist() for one in tensors.values()), strict=True):
        yield dict(zip((*axes, *tensors), (*place, *values), strict=True))


def are_records(value: object) -> bool:
    """Whether a value is a list of dataclasses."""
    return isinstance(value, list) and bool(value) and dataclasses.is_dataclass(value[0])


def _plain(value: Any) -> Any:
    """A cell of a table: tensors as numbers or lists, and what is no data as its text."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | Mapping) or value is None else str(value)


def _value(value: object) -> str:
    """A value in a `repr`."""
    if are_records(value):
        return f"[{len(value)} {type(value[0]).__name__}]"  # type: ignore[arg-type, index]
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:79]}…")
    if isinstance(value, list | tuple | Mapping):
        some = markup.words(value, 60)
        return f"{{{some}}}" if isinstance(value, Mapping) else f"[{some}]"
    return markup.words(value, 100)


def _frame(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(records))

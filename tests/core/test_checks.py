"""Arguments are checked against the signature; the sentence names the argument, what it may be and what it is."""

from __future__ import annotations

import json
from collections import UserDict, UserList, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from annotated_types import Ge, Le
from torch import Tensor

from workbench.core.checks import (
    INFINITE,
    Flags,
    Floats,
    Integer,
    Natural,
    Number,
    Positive,
    PositiveNumber,
    Share,
    Wholes,
    as_integer,
    as_number,
    checked,
)
from workbench.core.errors import WorkbenchError
from workbench.core.type_words import described


class RoomError(WorkbenchError):
    """A room's own."""


@checked(RoomError)
def act(
    tensor: Tensor,
    count: Positive = 1,
    *,
    seed: Natural = 0,
    share: Share = 0.5,
    lr: PositiveNumber = 1e-3,
    bits: Annotated[Integer, Ge(2), Le(16)] = 8,
    k: Positive | None = None,
    scale: Literal["raw", "unit"] = "raw",
    layers: Sequence[Natural] | None = None,
    stop: bool = True,
    name: str = "",
    progress: Callable[[float, str], None] | None = None,
    by_name: Mapping[str, Number] | None = None,
    texts: Iterable[str] = (),
    **more: Number,
) -> dict[str, Any]:
    return {key: value for key, value in locals().items() if key != "more"} | more


ONE = torch.ones(1)


class Opened:
    """What a function of a text makes."""

    opened_by = "wb.open"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"count": 0}, "count is a whole number from 1, not 0."),
        ({"count": True}, "count is a whole number from 1, not True."),
        ({"count": 2.0}, "count is a whole number from 1, not 2.0."),
        ({"seed": "x"}, "seed is a whole number from 0, not 'x'."),
        ({"share": 1.5}, "share is a number from 0 to 1, not 1.5."),
        ({"share": float("nan")}, "share is a number from 0 to 1, not nan."),
        ({"lr": 0}, "lr is a number above 0, not 0."),
        ({"lr": float("inf")}, "lr is a number above 0, not inf."),
        ({"bits": 17}, "bits is a whole number from 2 to 16, not 17."),
        ({"k": -1}, "k is a whole number from 1, or None, not -1."),
        ({"scale": "raww"}, "scale is 'raw' or 'unit', not 'raww'."),
        ({"layers": [True]}, "layers is a list of whole numbers from 0, or None, not [True]."),
        ({"layers": "12"}, "layers is a list of whole numbers from 0, or None, not '12'."),
        ({"stop": 1}, "stop is True or False, not 1."),
        ({"name": b"x"}, "name is a text, not b'x'."),
        ({"progress": 3}, "progress is a function, or None, not 3."),
        ({"by_name": {"a": "b"}}, "by_name is a mapping of texts to numbers, or None, not {'a': 'b'}."),
        ({"tensor": [1.0]}, "tensor is a Tensor, not [1.0]."),
        ({"texts": 3}, "texts is an iterable of texts, not 3."),
        ({"other": "x"}, "other is a number, not 'x'."),
        ({"name": ["a" * 500]}, "name is a text, not ['" + "a" * 55 + "…."),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RoomError) as caught:
        act(**({"tensor": ONE} | arguments))
    assert str(caught.value) == sentence


def test_right_arguments_arrive_as_they_are() -> None:
    layers, texts = [0, 1], iter(["a"])
    result = act(ONE, np.int64(3), layers=layers, texts=texts, lr=1, share=np.float32(0.5), more_of_it=2)
    assert result["tensor"] is ONE
    assert type(result["count"]) is int
    assert result["count"] == 3
    assert result["layers"] is layers
    assert result["texts"] is texts
    assert list(texts) == ["a"], "nothing was taken from it"
    assert type(result["share"]) is float
    assert (result["lr"], result["more_of_it"]) == (1, 2)


def test_a_class_checks_its_constructor() -> None:
    @checked(RoomError)
    @dataclass(frozen=True)
    class Settings:
        temperature: PositiveNumber = 1.0

    assert Settings(0.5).temperature == 0.5
    with pytest.raises(RoomError, match=r"^temperature is a number above 0, not -1\.$"):
        Settings(temperature=-1)


def test_a_number_stays_a_parameter() -> None:
    assert described(Annotated[Integer, Ge(1000)]) == "a whole number from 1,000"
    with pytest.raises(TypeError, match=r"^act\(\) missing"):
        act()  # type: ignore[call-arg]


@dataclass(frozen=True)
class Settings:
    steps: int = 1


def test_a_dataclass_is_checked_by_isinstance() -> None:
    @checked(WorkbenchError)
    def run(settings: Settings) -> Settings:
        return settings

    settings = Settings(steps=2)
    assert run(settings) is settings
    with pytest.raises(WorkbenchError, match=r"settings is a Settings, not \{'steps': 2\}"):
        run({"steps": 2})  # type: ignore[arg-type]


def through(form: Any, value: Any) -> Any:
    """The value as it arrives at a function whose argument is of this type."""

    def receive(value: Any) -> Any:
        return value

    receive.__annotations__ = {"value": form}
    return checked(RoomError)(receive)(value)


class Pair(NamedTuple):
    first: int
    second: int


class Words(Mapping[str, int]):
    """A mapping that is no dict."""

    def __getitem__(self, key: str) -> int:
        return len(key)

    def __iter__(self) -> Any:
        return iter(["a", "bc"])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (Sequence[Natural], range(3)),
        (Sequence[Natural], deque([1, 2])),
        (Sequence[Natural], Pair(1, 2)),
        (Sequence[Natural], UserList([1, 2])),
        (Sequence[Natural], {"a": 1}.values()),
        (Sequence[str], {"a": 1}.keys()),
        (Sequence[str], np.array(["a", "b"])),
        (Sequence[str], pd.Series(["a", "b"], index=[4, 5])),
        (Sequence[str | Sequence[str]], ["a", ("b", "c")]),
        (Sequence[Tensor], torch.nn.ParameterList([ONE])),
        (Sequence, range(3)),
        (Collection[str], {"a", "b"}),
        (Collection[str], ["a"]),
        (Collection[Natural], frozenset([1])),
        (Mapping[str, Integer], MappingProxyType({"a": 1})),
        (Mapping[str, Integer], UserDict({"a": 1})),
        (Mapping[str, Integer], Words()),
        (Mapping, Words()),
        (tuple[int, int], [3, 1]),
        (tuple[int, int], (3, 1)),
        (tuple[Number, Number], [0, 1]),
        (Sequence[tuple[Integer, Integer]], [[3, 1]]),
        (tuple[int, ...], (1, 2, 3)),
        (set[int], {1}),
        (Literal[1, -1], -1),
        (Iterable[str], ["a"]),
        (float, 1),
        (Annotated[float, INFINITE], float("inf")),
        (Annotated[Integer | None, Ge(2)], None),
    ],
)
def test_what_fits_is_passed_on_itself(form: Any, value: Any) -> None:
    assert through(form, value) is value


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (Sequence[Natural], {1, 2}),
        (Sequence[Natural], {1: 2}),
        (Sequence[int], b"ab"),
        (Sequence[str], "ab"),
        (Sequence[str], iter("ab")),
        (Sequence[str], pd.DataFrame({"a": [1], "b": [2]})),
        (Sequence[Natural], np.array(3)),
        (Sequence[Natural], np.array([True])),
        (Sequence[Natural], range(-1, 2)),
        (Collection[str], "ab"),
        (Collection[Natural], {-1}),
        (Mapping[str, Integer], [("a", 1)]),
        (tuple[int, int], [1, 2, 3]),
        (tuple[int, int], "ab"),
        (list[int], (1, 2)),
        (set[int], [1]),
        (Number, np.bool_(True)),
        (Integer, np.bool_(True)),
        (Number, torch.tensor([2.0])),
        (Literal[1, -1], True),
        (Literal[1, -1], 1.0),
        (Iterable[str], "ab"),
        (Iterable[int], "ab"),
        (Iterable[int], b"ab"),
        (float, float("nan")),
        (float, float("inf")),
        (float, np.float32("inf")),
        (float, True),
        (Annotated[float, INFINITE], float("nan")),
        (int, True),
        (int, 1.0),
        (Annotated[Integer | None, Ge(2)], 1),
    ],
)
def test_what_does_not_fit_is_refused(form: Any, value: Any) -> None:
    with pytest.raises(RoomError, match=r"^value is [^\n]+\.$"):
        through(form, value)


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        (int, np.int64(1), 1),
        (float, np.float64(0.5), 0.5),
        (Literal[1, -1], np.int64(-1), -1),
        (Sequence[Natural], [np.int64(1), 2], [1, 2]),
        (Sequence[Natural], (np.int64(1),), (1,)),
        (Sequence[Natural], np.array([1, 2]), [1, 2]),
        (Sequence[Sequence[Natural]], np.array([[1, 2]]), [[1, 2]]),
        (Sequence[Number], deque([np.float32(0.5), 1]), [0.5, 1]),
        (Mapping[str, Number], {"a": np.float32(0.5), "b": 1}, {"a": 0.5, "b": 1}),
        (Mapping[str, Number], MappingProxyType({"a": np.float32(0.5)}), {"a": 0.5}),
        (Mapping[int, str], {np.int64(1): "a"}, {1: "a"}),
        (Mapping[str, Sequence[int]], {"a": [np.int64(1)]}, {"a": [1]}),
        (tuple[int, int], (np.int64(1), 2), (1, 2)),
        (Sequence[tuple[int, int]], [[np.int64(1), 2]], [[1, 2]]),
        (Sequence[Number] | None, [np.float32(2)], [2.0]),
    ],
)
def test_numbers_of_other_libraries_become_pythons(form: Any, value: Any, expected: Any) -> None:
    result = through(form, value)
    assert type(result) is type(expected)
    assert json.dumps(result) == json.dumps(expected)


def test_a_set_of_other_numbers_stays_a_set() -> None:
    result = through(Collection[Integer], {np.int64(1), np.int64(2)})
    assert result == {1, 2}
    assert {type(one) for one in result} == {int}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (Sequence[Fraction], "a list of Fractions"),
        (Annotated[Integer | None, Ge(2)], "a whole number from 2, or None"),
        (Sequence[tuple[Integer, Integer]], "a list of pairs of whole numbers"),
        (tuple[str, Integer], "a pair of a text and a whole number"),
        (tuple[int, int, int], "a tuple of 3 whole numbers"),
        (tuple[Positive, ...], "a tuple of whole numbers from 1"),
        (Sequence[str | Sequence[str]], "a list of texts or lists of texts"),
        (Mapping[str, Any], "a mapping of texts to anything"),
        (Collection[Literal["a", "b"]], "a collection of 'a' or 'b'"),
        (Sequence[bool], "a list of True or False"),
    ],
)
def test_types_in_words(form: Any, words: str) -> None:
    assert described(form) == words


def test_plurals_of_classes() -> None:
    class Dictionary: ...

    class Key: ...

    class Child: ...

    assert described(Sequence[Dictionary]) == "a list of Dictionaries"
    assert described(Sequence[Key]) == "a list of Keys"
    assert described(Sequence[Child]) == "a list of Children"


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), "1", None, torch.tensor([1]), torch.tensor(True), torch.tensor(1j), 1j, [1]]
)
def test_what_is_no_number(value: Any) -> None:
    assert as_integer(value) is None
    assert as_number(value) is None


def test_a_tensor_without_axes_is_its_number() -> None:
    assert [as_integer(torch.tensor(3)), as_number(torch.tensor(3)), as_number(torch.tensor(0.5))] == [3, 3, 0.5]
    assert as_integer(torch.tensor(3.0)) is as_number(torch.tensor(float("nan"))) is None
    assert as_number(torch.tensor(3.0, requires_grad=True)) is None, "what is learned would be lost"
    found = act(ONE, torch.tensor(2), share=torch.tensor(0.25), layers=[torch.tensor(1)], other=torch.tensor(2.0))
    assert [type(found[name]) for name in ("count", "share", "other")] == [int, float, float]
    assert (found["count"], found["share"], found["layers"], found["other"]) == (2, 0.25, [1], 2.0)


@checked(RoomError)
def use(model: Opened | None, parts: Sequence[Opened] = (), *, either: Opened | Natural = 0) -> None:
    """Takes what a function opens."""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model": "gpt2"}, "model is an Opened, or None, not 'gpt2'; write wb.open(\"gpt2\")."),
        ({"model": Path("a")}, f'model is an Opened, or None, not {Path("a")!r}; write wb.open("a").'),
        ({"model": 'a"\n'}, "model is an Opened, or None, not 'a\"\\n'; write wb.open(...)."),
        ({"model": ""}, "model is an Opened, or None, not ''."),
        ({"model": 3}, "model is an Opened, or None, not 3."),
        ({"model": None, "parts": ["a"]}, "parts is a list of Openeds, not ['a']; write wb.open(\"a\")."),
        (
            {"model": None, "either": "x"},
            "either is an Opened or a whole number from 0, not 'x'; write wb.open(\"x\").",
        ),
    ],
)
def test_a_text_in_place_of_what_it_opens_says_how(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RoomError) as caught:
        use(**arguments)
    assert str(caught.value) == sentence


def test_numbers_as_pythons() -> None:
    assert [type(as_integer(one)) for one in (3, np.int8(3))] == [int, int]
    assert [as_integer(one) for one in (3.0, np.float32(3))] == [None, None]
    assert [type(as_number(one)) for one in (3, np.int8(3), 0.5, np.float64(0.5), np.float32(0.5))] == [
        int,
        int,
        float,
        float,
        float,
    ]
    assert [as_number(one) for one in (float("nan"), np.float32("inf"), Fraction(10**400))] == [None] * 3
    assert as_number(10**400) == 10**400


@checked(RoomError)
def keep(
    path: str | Path,
    texts: Sequence[str] = (),
    *,
    logits: Floats | None = None,
    ids: Wholes | None = None,
    mask: Flags | None = None,
) -> None:
    """Nothing."""


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"path": "a\0b"}, r"path is a text or a Path without a NUL character, not 'a\\x00b'\."),
        ({"path": Path("a\0b")}, "path is a text or a Path without a NUL character"),
        ({"path": "a\ud800"}, "path is a text or a Path without halves of characters"),
        ({"path": "a" * 300}, "path is a text or a Path with names of at most 255 bytes"),
        ({"path": ""}, "path is a text or a Path that is not empty"),
        ({"path": 5}, "path is a text or a Path, not 5"),
        ({"path": "a", "texts": ["b", "\ud800"]}, "texts is a list of texts without halves of characters"),
        ({"path": "a", "logits": torch.ones(2).long()}, "logits is a Tensor of floating-point numbers, or None"),
        ({"path": "a", "ids": torch.ones(2)}, "ids is a Tensor of whole numbers, or None"),
        ({"path": "a", "mask": torch.ones(2)}, "mask is a Tensor of truth values, or None"),
    ],
)
def test_paths_texts_and_tensors_that_can_not_be_used(how: dict[str, Any], words: str) -> None:
    with pytest.raises(RoomError, match=words) as caught:
        keep(**how)
    str(caught.value).encode()


def test_numbers_have_64_bits() -> None:
    assert act(torch.ones(1), seed=2**63 - 1)["seed"] == 2**63 - 1
    for how in ({"seed": 2**63}, {"seed": 10**400}, {"lr": 10**400}, {"layers": [10**400]}):
        with pytest.raises(RoomError, match="of at most 64 bits"):
            act(torch.ones(1), **how)

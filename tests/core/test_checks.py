"""Arguments are checked against the signature; the sentence names the argument, what it may be and what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from annotated_types import Ge, Le
from torch import Tensor

from workbench.core.checks import Integer, Natural, Number, Positive, PositiveNumber, Share, checked, described
from workbench.core.errors import WorkbenchError


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
    with pytest.raises(TypeError, match="missing"):
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

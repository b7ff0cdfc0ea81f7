"""Products in each form, and how a form is chosen and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from workbench.core import products


@pytest.fixture
def large(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of any size count as large, and no form is chosen yet."""
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr(products, "_CHOSEN", {})


@pytest.mark.parametrize("form", products.FORMS)
@pytest.mark.parametrize("strided", [False, True])
def test_each_form_is_the_product(form: str, strided: bool) -> None:
    chance = torch.Generator().manual_seed(0)
    rows, weights = torch.randn(33, 24, generator=chance), torch.randn(70, 24, generator=chance)
    room = torch.zeros(33, 100)
    out = room[:, 7:77] if strided else room.flatten()[: 33 * 70].view(33, 70)
    assert products.product(rows, weights, out, form) is out
    torch.testing.assert_close(out.double(), rows.double() @ weights.double().T, rtol=1e-5, atol=1e-5)
    if strided:
        assert not room[:, :7].any()
        assert not room[:, 77:].any()


def test_a_choice_is_kept_for_the_machine(large: None, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weights = torch.randn(9, 5), torch.randn(17, 5)
    calls = dict.fromkeys(products.FORMS, 0)

    def counted(name: str, after: float) -> None:
        real = products.FORMS[name]

        def form(*what: torch.Tensor) -> torch.Tensor:
            calls[name] += 1
            torch.ones(1).repeat(int(after)).sum()
            return real(*what)

        monkeypatch.setitem(products.FORMS, name, form)

    counted("torch", 3e6)
    counted("numpy", 1)
    for _ in range(2):
        out = products.product(rows, weights, torch.empty(9, 17))
        torch.testing.assert_close(out, rows @ weights.T)
    assert calls == {"torch": products.TURNS, "numpy": products.TURNS + 2}
    (file,) = (own_cache / "products").glob("*.json")
    assert list(json.loads(file.read_text()).values()) == ["numpy"]

    monkeypatch.setattr(products, "_CHOSEN", {})  # another process
    products.product(rows, weights, torch.empty(9, 17))
    assert calls["torch"] == products.TURNS
    for damage in ("{", '{"4x5x3": "other"}', '["numpy"]'):
        file.write_text(damage)
        monkeypatch.setattr(products, "_CHOSEN", {})
        torch.testing.assert_close(products.product(rows, weights, torch.empty(9, 17)), rows @ weights.T)


def test_small_products_and_other_types_have_one_form(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert products.form_of(torch.ones(2, 3), torch.ones(4, 3), torch.ones(2, 4)) == "torch"
    monkeypatch.setattr(products, "LEAST", 1)
    doubles = torch.ones(2, 3).double(), torch.ones(4, 3).double(), torch.ones(2, 4).double()
    assert products.form_of(*doubles) == "torch"
    assert not (own_cache / "products").exists()


def test_a_form_of_another_machine_is_left_where_it_cannot_be() -> None:
    rows, weights = torch.randn(3, 5, dtype=torch.bfloat16), torch.randn(7, 5, dtype=torch.bfloat16)
    out = torch.empty(3, 7, dtype=torch.bfloat16)
    assert torch.equal(products.product(rows, weights, out, "numpy"), torch.mm(rows, weights.T))

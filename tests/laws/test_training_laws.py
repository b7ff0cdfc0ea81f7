"""Laws of training over every kind that learns: continuing alone changes nothing, the log says what happened."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from workbench.dictionaries import Dictionary, DictionaryError, Trainable
from workbench.dictionaries.coder import SparseCoder
from workbench.harvest import Activations

KINDS = sorted((k for k in Dictionary.kinds.values() if issubclass(k, Trainable)), key=lambda kind: kind.kind)
CODERS = [kind for kind in KINDS if issubclass(kind, SparseCoder)]
CHOOSING = {
    "topk",
    "topk_transcoder",
    "topk_skip_transcoder",
    "groupmax",
    "groupmax_transcoder",
    "groupmax_skip_transcoder",
    "batchtopk",
    "matryoshka_batchtopk",
}
"""Kinds in which latents compete, so that norms can't move from one latent's decoder to its encoder."""
NOTHING = 1e-9
"""A learning rate that changes no weight by more than its rounding."""


class Rows:
    """An endless source: sparse sums of 24 directions in 8 dimensions, and a linear image of them."""

    def __init__(self, amount: float = 1.0):
        chance = torch.Generator().manual_seed(7)
        self.directions = torch.nn.functional.normalize(torch.randn(24, 8, generator=chance), dim=1)
        self.image = torch.randn(8, 8, generator=chance)
        self.amount = amount

    def rows(self, number: int, size: int = 64) -> tuple[Tensor, Tensor]:
        chance = torch.Generator().manual_seed(number)
        amounts = torch.rand(size, 24, generator=chance) * (torch.rand(size, 24, generator=chance) < 0.1)
        x = self.amount * (amounts @ self.directions) + 3.0
        return x, x @ self.image

    def run(self, skip: int = 0) -> Iterator[Activations]:
        for number in range(skip // 64, 10**6):
            x, y = self.rows(number)
            where = torch.arange(64)
            parts = {f"{name}.{n}": one for name, z in (("in", x), ("out", y)) for n, one in enumerate(z.chunk(2, 1))}
            yield Activations({"in": x, "out": y} | parts, where, where, where)

    def settings(self) -> dict[str, Any]:
        return {"model": "rows", "amount": self.amount}


def trained(dictionary: Any, tokens: int = 2560, **how: Any) -> Any:
    reads, writes = ("in.0 + in.1", "out.0 + out.1") if dictionary.across else ("in", "out")
    target = writes if dictionary.transcodes else ""
    settings: dict[str, Any] = {"batch_size": 64, "block": 256, "lr": 3e-3, "source": Rows(), **how}
    return wb.train(dictionary, hook_point=reads, target=target, tokens=tokens, **settings)


def fvu(dictionary: Any) -> float:
    x, y = Rows().rows(-1 % 10**7, 4096)
    wanted = y if dictionary.transcodes else x
    left = (dictionary.reconstruct(x) - wanted).square().sum()
    return float(left / (wanted - wanted.mean(0)).square().sum())


def by_another_tool(dictionary: Any) -> Any:
    """The same weights from a configuration without a word of ours."""
    config = {name: value for name, value in dictionary.config().items() if name != "workbench"}
    tensors = {name: tensor.clone() for name, tensor in dictionary.tensors().items()}
    return type(dictionary).from_config(config, tensors)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_continuing_changes_nothing_by_itself(kind: Any, tmp_path: Path) -> None:
    parent = trained(kind.example())
    parent.save(tmp_path)
    children = [wb.load_dictionary(tmp_path)]
    if kind in CODERS:
        children.append(by_another_tool(parent))
    for child in children:
        logged: list[Any] = []
        trained(child, 64, lr=NOTHING, log=logged.append)
        near = 0.1 if kind.kind.endswith("batchtopk") else 1e-3  # its threshold is measured again, on 64 rows
        assert fvu(child) == pytest.approx(fvu(parent), rel=near)
        assert child.unit_out == pytest.approx(parent.unit_out, rel=0.2)
        assert logged[0]["error"] < 2 * parent.d_out  # in units of the activations' size


@pytest.mark.parametrize("kind", CODERS, ids=lambda kind: kind.kind)
def test_a_decoder_of_other_norms_stays_the_same_function_or_is_refused(kind: Any) -> None:
    parent = trained(kind.example())
    for factors in (torch.full((24,), 3.0), torch.linspace(0.5, 2.0, 24)):
        child = by_another_tool(parent)
        with torch.no_grad():
            child.W_dec.mul_(factors[:, None])
            child.W_enc_T.div_(factors[:, None])
            child.b_enc.div_(factors)
            for tensor in (*child.activation.parameters(), *child.activation.buffers()):
                tensor.div_(factors)
        if len(factors.unique()) > 1 and kind.kind in CHOOSING:
            with pytest.raises(DictionaryError, match="norm 1"):
                trained(child, 64, lr=NOTHING)
            continue
        before = fvu(child)
        trained(child, 64, lr=NOTHING)
        near = 0.1 if kind.kind.endswith("batchtopk") else 1e-3
        assert fvu(child) == pytest.approx(before, rel=near)
        assert child.W_dec.norm(dim=1) == pytest.approx(1.0, rel=1e-5)


def test_a_dictionary_saved_before_its_training_is_set_from_a_sample(tmp_path: Path) -> None:
    fresh = wb.TopKSAE.example()
    fresh.save(tmp_path)
    opened: Any = wb.load_dictionary(tmp_path)
    assert trained(opened).hash == trained(wb.TopKSAE.example()).hash


@pytest.mark.parametrize("tokens", [640, 12_800])
def test_the_l0_of_batchtopk_is_the_one_it_was_asked_for(tokens: int) -> None:
    sae = trained(wb.dictionaries.BatchTopKSAE(8, 24, 3), tokens)
    x, _ = Rows().rows(10**7, 8192)
    active = float((sae.encode(x).values > 0).sum()) / len(x)
    assert active == pytest.approx(3, abs=0.35)  # as large as a batch of 64 leaves it


def test_the_threshold_of_batchtopk_is_exact_on_what_it_is_measured_on() -> None:
    sae = trained(wb.dictionaries.BatchTopKSAE(8, 24, 3), 640)
    x, _ = Rows().rows(1, 5000)
    sae.calibrate(x)
    assert int((sae.encode(x).values > 0).sum()) == 3 * 5000


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_no_latent_is_revived_too_late_and_the_log_counts_the_dead(decay: float) -> None:
    class Watched(wb.dictionaries.StandardSAE):
        when: list[int]

        def resample(self, x: Tensor, dead: Tensor, *arguments: Any, **how: Any) -> int:
            self.when.append(int(dead.sum()))
            revived = super().resample(x, dead, *arguments, **how)
            self.b_enc[:6] = -100.0  # some die again, so that there are dead ones in the last step
            return revived

    sae = Watched(8, 24)
    sae.when = []
    with torch.no_grad():
        sae.b_enc[:6] = -100.0
    lines: list[Any] = []
    trained(sae, 64 * 42, fresh=False, decay=decay, dead_after=7 * 64, lr=NOTHING, log=lines.append)
    assert lines[-1]["step"] == 42
    assert lines[-1]["dead"] > 0
    revived = [line for line in lines if line["step"] % 7 == 0 and line["step"] <= 33 and line["dead"] > 0]
    assert [math.ceil(24 * line["dead"] - 1e-9) for line in revived] == sae.when
    assert 0 < len(sae.when) < 5


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_one_repeated_activation_is_refused(kind: Any, fresh: bool) -> None:
    with pytest.raises(DictionaryError, match="one and the same activation"):
        trained(kind.example(), source=Rows(amount=1e-7), fresh=fresh)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_share_of_a_batch_that_varies_by_rounding_only_is_no_number(kind: Any) -> None:
    """Of a batch of other activations it is that of a loop in float64."""
    dictionary = trained(kind.example(), tokens=640)
    x, y = Rows().rows(3)
    once, twice = (dictionary.loss_and_gradients(*rows).fvu for rows in (pair(kind, x, y), pair(kind, x[:1], y[:1])))
    wanted = (y if kind.transcodes else x).double()
    error = (dictionary.reconstruct(x).double() - wanted).square().sum()
    if not kind.kind.endswith("batchtopk"):  # in training it chooses among the whole batch
        assert once == pytest.approx(float(error / (wanted - wanted.mean(0)).square().sum()), rel=1e-3)
    assert math.isnan(twice)
    noise = 1 + 1e-7 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    same = pair(kind, x[:1] * noise, y[:1] * noise)
    assert math.isnan(dictionary.loss_and_gradients(*same).fvu)
    with torch.no_grad():
        if isinstance(dictionary, SparseCoder):  # what remains behind the decoder's bias is rounding alone
            dictionary.b_dec.copy_(y[0] if kind.transcodes else x[0])
    assert math.isnan(dictionary.loss_and_gradients(*same).fvu)


def pair(kind: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a kind learns from."""
    return x, y if kind.transcodes else None

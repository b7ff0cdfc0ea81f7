"""How dictionaries learn: hand-written gradients against autograd, units, dead latents, known features recovered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.dictionaries import learning, sparse
from workbench.dictionaries.batchtopk import BatchTopK, MatryoshkaBatchTopK
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.gated import Gate
from workbench.dictionaries.jumprelu import JumpReLU
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.relu import ReLU, StandardSAE
from workbench.dictionaries.topk import TopK, TopKSAE, TopKTranscoder
from workbench.dictionaries.trainable import Trainable

KINDS = sorted((k for k in Dictionary.kinds.values() if issubclass(k, Trainable)), key=lambda kind: kind.kind)
CODERS = [kind for kind in KINDS if issubclass(kind, SparseCoder)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
every_coder = pytest.mark.parametrize("kind", CODERS, ids=lambda kind: kind.kind)
PENALISED = {ReLU: True, JumpReLU: True, TopK: False, BatchTopK: False, MatryoshkaBatchTopK: False, Gate: True}
"""Activation functions whose loss is written out below, and whether it has a penalty on density."""
BATCH = 40


def batch(coder: Trainable, rows: int = BATCH, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    """Inputs and, for kinds that write elsewhere, targets."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(coder.d_in, coder.d_in, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, coder.d_in, generator=generator, dtype=torch.float64) @ mixing + 2
    target = x @ torch.randn(coder.d_in, coder.d_out, generator=generator, dtype=torch.float64) - 1
    return x, target if coder.transcodes else None


def prepared(kind: type[Trainable]) -> Any:
    """A double-precision example somewhere in the middle of training."""
    coder = kind.example().double()
    coder.initialise(*batch(coder))
    generator = torch.Generator().manual_seed(2)
    for name, tensor in coder.state_dict().items():
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        if name != "activation.threshold":
            tensor.add_((noise - 0.5) * tensor.abs().mean().clamp(min=0.1))
        elif isinstance(tensor, Tensor) and not isinstance(coder.activation, BatchTopK):
            tensor.add_(0.2 * noise * coder.unit_out)
    coder.constrain()
    return coder


def expected_loss(coder: SparseCoder, x: Tensor, target: Tensor, dead: Tensor | None) -> Tensor:
    """The loss written out densely, for autograd; the choice of latents is taken from the coder."""
    pre = (x - coder.b_dec if coder.centred else x) @ coder.W_enc + coder.b_enc
    detached = pre.detach()
    unit, part = coder.unit_out, coder.activation
    penalty = torch.zeros((), dtype=torch.float64)
    if isinstance(part, BatchTopK):
        active = detached >= detached.flatten().topk(int(part.k * len(x))).values.min()
    elif isinstance(part, TopK):
        active = detached >= detached.topk(part.k).values[:, -1:]
    elif isinstance(part, Gate):
        active = detached > part.threshold.detach()
    else:
        active = detached > 0
    if isinstance(part, JumpReLU):
        values, jumps = _Jump.apply(pre, part.threshold, part.bandwidth * unit)
        penalty = part.l0 * jumps.sum(1).mean()
    else:
        values = pre.relu() * active
        if isinstance(part, ReLU):
            penalty = part.l1 * values.sum(1).mean() / unit
    made = values @ coder.W_dec + coder.b_dec
    if coder.W_skip is not None:
        made = made + x @ coder.W_skip.T
    loss = (made - target).square().sum(1).mean() / unit**2 + penalty
    if isinstance(part, Gate):
        gates = ((pre - part.threshold) * (-part.r_mag).exp()).relu()
        loss = loss + part.l1 * gates.sum(1).mean() / unit
        loss = loss + (gates @ coder.W_dec.detach() + coder.b_dec.detach() - target).square().sum(1).mean() / unit**2
    if isinstance(part, MatryoshkaBatchTopK):
        for width in part.widths[:-1]:
            first = values[:, :width] @ coder.W_dec[:width] + coder.b_dec
            loss = loss + (first - target).square().sum(1).mean() / unit**2
    if dead is None or not part.auxiliary:
        return loss
    left_over = (target - made).detach()
    candidates = pre[:, dead]
    k = min(coder.d_in // 2, int(dead.sum()))
    kept = candidates.detach() >= candidates.detach().topk(k).values[:, -1:]
    error = (candidates * kept) @ coder.W_dec[dead] - left_over
    share = min(1.0, int(dead.sum()) / (coder.d_in // 2))
    return loss + part.auxiliary * share * error.square().sum(1).mean() / unit**2


class _Jump(torch.autograd.Function):
    """JumpReLU and its count, with the straight-through gradients of arXiv 2407.14435, equations 11 and 12."""

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, band: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.band = band
        above = (pre > threshold).to(pre.dtype)
        return pre * above, above

    @staticmethod
    def backward(ctx, by_value: Tensor, by_count: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        kernel = ((pre - threshold).abs() < ctx.band / 2).to(pre.dtype) / ctx.band
        by_threshold = (-threshold * kernel * by_value - kernel * by_count).sum(0)
        return by_value * (pre > threshold), by_threshold, None


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("some_dead", [0, 3, 9])
@every_coder
def test_gradients_agree_with_autograd(kind: type[Trainable], some_dead: int, dense: bool, monkeypatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_SHARE", 0.0 if dense else 1.0)
    coder = prepared(kind)
    if type(coder.activation) not in PENALISED:
        pytest.skip("its loss is not written out here")
    x, target = batch(coder)
    dead = torch.arange(coder.n_features) < some_dead if some_dead else None
    step = coder.loss_and_gradients(x, target, dead=dead)
    ours = {name: parameter.grad.clone() for name, parameter in coder.named_parameters()}
    again = coder.loss_and_gradients(x, target, dead=dead)
    assert all(torch.equal(ours[name], parameter.grad) for name, parameter in coder.named_parameters())

    coder.zero_grad()
    coder.requires_grad_()
    with torch.enable_grad():
        loss = expected_loss(coder, x, x if target is None else target, dead)
        loss.backward()
    assert step.loss == pytest.approx(loss.item(), rel=1e-9)
    assert step.loss == pytest.approx(step.error + step.penalty + step.auxiliary)
    assert again.loss == step.loss
    rows = coder.W_dec.detach()
    coder.W_dec.grad -= (coder.W_dec.grad * rows).sum(1, keepdim=True) * rows
    for name, parameter in coder.named_parameters():
        assert ours[name].is_contiguous()
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-8, atol=1e-10, msg=name)


@every_kind
def test_what_a_step_measures(kind: type[Trainable]) -> None:
    coder = prepared(kind)
    x, target = batch(coder)
    wanted = x if target is None else target
    step = coder.loss_and_gradients(x, target)
    if isinstance(coder, SparseCoder) and isinstance(coder.activation, BatchTopK):
        coder.activation.threshold.fill_(float(coder.activation.threshold[0]) * (1 - 1e-9))
    error = (coder.reconstruct(x) - wanted).square().sum()
    assert step.fvu == pytest.approx(float(error / (wanted - wanted.mean(0)).square().sum()), rel=1e-6)
    dense = coder.encode(x).dense()
    assert step.fired.tolist() == (dense > 0).sum(0).tolist()
    assert step.l0 == pytest.approx(float((dense > 0).sum(1).double().mean()))


@every_kind
def test_a_step_makes_the_loss_smaller(kind: type[Trainable]) -> None:
    coder = kind.example()
    x, target = (None if part is None else part.float() for part in batch(coder, 512))
    coder.initialise(x, target)
    optimiser = torch.optim.Adam(coder.parameter_groups(1e-3), fused=True)
    losses = []
    for _ in range(60):
        losses.append(coder.loss_and_gradients(x, target).loss)
        optimiser.step()
        coder.constrain()
    if not isinstance(coder, SparseCoder):  # a codebook begins where k-means ended
        assert losses[-1] < losses[0]
        return
    assert losses[-1] < 0.9 * losses[0]
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(coder.n_features))


@every_kind
def test_learning_does_not_depend_on_the_activations_size(kind: type[Trainable]) -> None:
    def learned(scale: float) -> tuple[SparseCoder, Tensor, float]:
        coder = kind.example().double()
        x, target = (None if part is None else part * scale for part in batch(coder, 128))
        coder.initialise(x, target)
        optimiser = torch.optim.Adam(coder.parameter_groups(1e-3), eps=1e-30)
        for _ in range(10):
            step = coder.loss_and_gradients(x, target)
            optimiser.step()
            coder.constrain()
        return coder, coder.reconstruct(x) / scale, step.loss

    (_, small, loss), (_, large, same_loss) = learned(1.0), learned(64.0)
    torch.testing.assert_close(large, small, rtol=1e-6, atol=1e-6)
    assert same_loss == pytest.approx(loss, rel=1e-6)


@every_coder
def test_the_penalty_warms_up(kind: type[Trainable]) -> None:
    coder = prepared(kind)
    x, target = batch(coder)
    full, half, none = (coder.loss_and_gradients(x, target, sparsity=share) for share in (1.0, 0.5, 0.0))
    assert half.penalty == pytest.approx(full.penalty / 2)
    assert none.penalty == 0
    assert (full.penalty > 0) == PENALISED.get(type(coder.activation), full.penalty > 0)


def test_starting_values() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 8, generator=generator) * 3 + 5
    x[:20] += 1e4
    sae = TopKSAE(8, 32, 4)
    sae.initialise(x)
    assert bool(((sae.b_dec - 5).abs() < 0.5).all())  # the mean would be 105
    inner = x[20:]
    assert 0 < float((sae.reconstruct(inner) - inner).square().sum() / (inner - inner.mean(0)).square().sum()) < 0.9
    torch.testing.assert_close(learning.geometric_median(torch.tensor([[0.0], [0.0], [1.0]])), torch.tensor([0.0]))


@pytest.mark.parametrize(
    ("value", "words"), [(1.0, "one and the same"), (float("nan"), "finite"), (float("inf"), "finite")]
)
def test_useless_samples_are_refused(value: float, words: str) -> None:
    with pytest.raises(DictionaryError, match=words):
        TopKSAE(8, 16, 2).initialise(torch.full((10, 8), value))


@every_coder
def test_dead_latents_get_gradients_or_are_resampled(kind: type[Trainable]) -> None:
    coder = prepared(kind)
    x, target = batch(coder)
    coder.b_enc[:5] = -1e6 * coder.unit_out
    dead = torch.arange(coder.n_features) < 5
    assert not coder.loss_and_gradients(x, target).fired[:5].any()
    if not coder.resamples:
        coder.loss_and_gradients(x, target, dead=dead)
        assert bool((coder.W_enc_T.grad[:5] != 0).any(1).all())
        return
    optimiser = torch.optim.Adam(coder.parameter_groups(1e-3))
    optimiser.step()
    coder.constrain()
    kept = coder.W_enc[:, 5:].clone()
    generator = torch.Generator().manual_seed(0)
    assert coder.resample(x, dead, target, optimiser=optimiser, generator=generator) == 5
    assert bool((coder.loss_and_gradients(x, target).fired[:5] > 0).all())
    assert torch.equal(coder.W_enc[:, 5:], kept)
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones_like(coder.b_enc))
    moment = optimiser.state[coder.W_enc_T]["exp_avg"]
    assert not moment[:5].any()
    assert bool(moment[5:].any())
    assert coder.resample(x, torch.zeros_like(dead), target) == 0


def test_known_features_are_recovered() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(32, 16, generator=generator), dim=1)

    def sample(rows: int) -> Tensor:
        present = torch.rand(rows, 32, generator=generator).topk(2).indices
        amounts = torch.zeros(rows, 32).scatter_(1, present, 0.5 + torch.rand(rows, 2, generator=generator))
        return 7 * (amounts @ features) + 3

    sae = TopKSAE(16, 64, k=2)
    sae.initialise(sample(1024))
    rate, steps, silent = 3e-3, 600, torch.zeros(64)
    optimiser = torch.optim.Adam(sae.parameter_groups(rate), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, 3 * (1 - step / steps)))
    for _ in range(steps):
        step = sae.loss_and_gradients(sample(256), dead=silent > 5000)
        optimiser.step()
        schedule.step()
        sae.constrain()
        silent = torch.where(step.fired > 0, 0, silent + 256)
    cosines = (features @ sae.W_dec.T).amax(1)
    assert float(cosines.mean()) >= 0.9
    assert step.fvu < 0.2


def test_an_l1_dictionary_becomes_sparse() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(16, 16, generator=generator), dim=1)
    sae = StandardSAE(16, 32, l1=2.0)
    x = (torch.rand(2048, 16, generator=generator) < 0.1).float() @ features
    sae.initialise(x)
    optimiser = torch.optim.Adam(sae.parameter_groups(3e-3), fused=True)
    first = sae.loss_and_gradients(x)
    for _ in range(200):
        step = sae.loss_and_gradients(x)
        optimiser.step()
        sae.constrain()
    assert step.l0 < first.l0 / 2
    assert step.fvu < 0.5


def test_a_transcoder_of_other_width_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    coder = TopKTranscoder(8, 64, k=8, d_out=3)
    x = torch.randn(1024, 8, generator=generator)
    target = (x @ torch.randn(8, 3, generator=generator)).relu() * 100
    coder.initialise(x, target)
    optimiser = torch.optim.Adam(coder.parameter_groups(1e-2), fused=True)
    for _ in range(200):
        step = coder.loss_and_gradients(x, target)
        optimiser.step()
        coder.constrain()
    assert step.fvu < 0.1

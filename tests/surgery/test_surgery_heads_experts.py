"""Fewer key and value heads, and experts of fewer neurons: exact where they must be, and chosen as said."""

from __future__ import annotations

from pathlib import Path

import pytest
import reference
import tiny
import torch
import zoo as architectures
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import workbench as wb
from workbench.surgery.child import SurgeryError
from workbench.surgery.operations.experts import extract_expert, keep_neurons, masks_by_domain, neuron_use
from workbench.surgery.operations.kv_heads import merge_kv_heads
from workbench.surgery.registry import Cancelled, apply_operation
from workbench.surgery.search.fitness import DenseKL

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])
UNCUT = ("mixtral", "bloom", "mpt")
"""Architectures whose neurons can't be cut."""
TOKENS = torch.arange(40).view(2, 20) * 7 % tiny.VOCAB


def turned(name: str, same: bool) -> nn.Module:
    """A model whose second key head is the first one, in each plane turned and lengthened, and whose second value head
    is the first one under a matrix; `same`: simply the first ones."""
    module = tiny.build(name, num_attention_heads=4, num_key_value_heads=2)
    chance = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in module.model.layers:
            attention = layer.self_attn
            width = attention.head_dim
            turn = torch.randn(width // 2, 2, generator=chance)
            mix = torch.randn(width, width, generator=chance)
            for part, own in (("k_proj", True), ("v_proj", False)):
                for value in getattr(attention, part).parameters():
                    first = value[:width].reshape(width, -1)
                    half = width // 2
                    if own:
                        re, im = turn[:, :1], turn[:, 1:]
                        upper, lower = first[:half], first[half:]
                        other = torch.cat([re * upper - im * lower, im * upper + re * lower])
                    else:
                        other = mix @ first
                    value[width:] = (first if same else other).view_as(value[width:])
    return module


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_joining_loses_nothing_where_heads_hold_the_same(name: str, tmp_path: Path) -> None:
    module = turned(name, same=False)
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    child = merge_kv_heads(model, 1, corpus=CORPUS, tokens=60)
    assert child.model.network.config.num_key_value_heads == 1
    wanted = reference.logits_under(module, TOKENS)
    assert float((child.model(TOKENS) - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    mean = merge_kv_heads(model, 1, method="mean", corpus=CORPUS)
    assert float((mean.model(TOKENS) - wanted).abs().max()) > 0.01 * float(wanted.abs().max())
    child.save_pretrained(tmp_path / "joined")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "joined", dtype=torch.float32)
    assert torch.allclose(reference.logits_under(plain, TOKENS), child.model(TOKENS), atol=1e-5)
    one = model.generate(TOKENS[:1, :5], 4).tokens
    assert child.model.generate(TOKENS[:1, :5], 4).tokens == one


def test_the_mean_is_right_where_heads_are_equal() -> None:
    module = turned("llama", same=True)
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    wanted = reference.logits_under(module, TOKENS)
    for method in ("mean", "svd"):
        child = merge_kv_heads(model, 1, method=method, corpus=CORPUS, tokens=60)
        assert torch.allclose(child.model(TOKENS), wanted, atol=1e-3)


def test_keys_of_the_joined_head_are_the_best_in_every_plane(llama: wb.model.LanguageModel) -> None:
    child = merge_kv_heads(llama, 1, corpus=CORPUS, tokens=60)
    seen = {"k": [], "v": []}
    for batch in CORPUS.batches(llama, 256, 4, 60, 0):
        points = [f"blocks.1.attn.hook_{kind}" for kind in seen]
        for kind, value in zip(seen, llama.capture(batch.tokens, points).values(), strict=True):
            seen[kind].append(value[batch.content])
    keys, values = (torch.cat(seen[kind]).double() for kind in seen)  # [tokens, 2, width]
    half = keys.shape[-1] // 2
    place = "model.layers.1.self_attn.{}_proj.weight"
    new, old = (dict(m.network.module.named_parameters()) for m in (child.model, llama))
    for plane in range(half):
        z = torch.complex(keys[..., plane], keys[..., plane + half])  # [tokens, 2]
        best = torch.linalg.svd(z.conj(), full_matrices=False).Vh[0]  # the combination of heads with most variance
        made = torch.complex(*(new[place.format("k")][[plane, plane + half]].double()))
        heads = old[place.format("k")].view(2, 2 * half, -1).double()
        wanted = (best[:, None] * torch.complex(heads[:, plane], heads[:, plane + half])).sum(0)
        overlap = torch.vdot(made, wanted).abs() / (made.norm() * wanted.norm())
        assert float(overlap) == pytest.approx(1, abs=1e-4)
    top = torch.linalg.svd(values.flatten(1), full_matrices=False).Vh[: 2 * half]  # [width, 2 * width]
    wanted_span = torch.linalg.qr((top @ old[place.format("v")].double()).T).Q
    made_span = torch.linalg.qr(new[place.format("v")].double().T).Q
    assert torch.allclose(torch.linalg.svdvals(wanted_span.T @ made_span), torch.ones(2 * half).double(), atol=1e-4)


def test_svd_beats_the_mean(llama: wb.model.LanguageModel) -> None:
    fitness = DenseKL(llama, CORPUS, 80, context=40)
    kl = {
        method: fitness(merge_kv_heads(llama, 1, method=method, corpus=CORPUS, tokens=80).model.network.module)
        for method in ("svd", "mean")
    }
    assert kl["svd"] < kl["mean"]


def test_heads_that_cannot_be_joined(llama: wb.model.LanguageModel, zoo) -> None:
    for heads in (0, 2, 3):
        with pytest.raises(SurgeryError, match="has 2 key and value heads per layer; it can have 1"):
            merge_kv_heads(llama, heads)
    for heads in (True, 1.0):
        with pytest.raises(SurgeryError, match="heads is a whole number, not"):
            merge_kv_heads(llama, heads)  # type: ignore[arg-type]
    for name in ("gpt2", "neox"):
        with pytest.raises(SurgeryError, match="no key and value heads"):
            merge_kv_heads(zoo[name], 1)
    with pytest.raises(SurgeryError, match="method is 'svd' or 'mean'"):
        merge_kv_heads(llama, 1, method="best")
    with pytest.raises(Cancelled):
        merge_kv_heads(llama, 1, corpus=CORPUS, cancel=lambda: True)
    assert apply_operation(llama, "merge_kv_heads", heads=1, tokens=64).model.network.config.num_key_value_heads == 1


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_use_and_cutting(name: str, zoo, tmp_path: Path) -> None:
    model, plain = zoo[name], tiny.build(name)
    use = neuron_use(model, CORPUS, 60)
    layer = model.network.n_layers - 1
    module, side = tiny.mlp(plain, layer)["post"]
    total: Tensor | float = 0.0
    count = 0
    for batch in CORPUS.batches(model, 256, 4, 60, 0):
        seen = reference.seen_at(plain, module, side, batch.tokens)
        total = total + seen[batch.content].abs().sum(0)
        count += int(batch.content.sum())
    wanted = total / count * tiny.weights(plain, layer)["down"].norm(dim=1)
    assert torch.allclose(use[layer], wanted, rtol=1e-4)

    mask = masks_by_domain({"all": use}, 0.5)["all"]
    assert bool((use[mask].view(len(use), -1).amin(1) >= use[~mask].view(len(use), -1).amax(1)).all())
    child = keep_neurons(model, mask, of="all")
    edits = [reference.PlainEdit(*tiny.mlp(plain, n)["post"], lambda x, n=n: x * mask[n]) for n in range(len(mask))]
    assert torch.allclose(child.model(TOKENS), reference.logits_under(plain, TOKENS, edits), atol=1e-4)
    assert child.model.network.neuron_hook_point(0, "post").width == use.shape[1] // 2
    child.save_pretrained(tmp_path / "expert")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "expert", dtype=torch.float32)
    assert torch.allclose(reference.logits_under(loaded, TOKENS), child.model(TOKENS), atol=1e-5)


@pytest.mark.parametrize("name", ["phi3", "glm4", "opt", "bloom", "falcon-parallel", "mixtral"])
def test_an_expert_of_other_forms_is_right_or_refused(name: str) -> None:
    """Gate and up in one matrix, widths under other names: as plain transformers with the other neurons at 0."""
    plain = architectures.build(name)
    model = wb.load_model(architectures.build(name), tokenizer=tiny.tokenizer())
    if name in UNCUT:
        with pytest.raises((SurgeryError, wb.model.ModelError)):
            keep_neurons(model, torch.ones(3, 128) > 0)
        return
    width = model.network.neuron_hook_point(0, "post").width
    draws = torch.rand(model.network.n_layers, width, generator=torch.Generator().manual_seed(1))
    mask = draws > draws.median(1, keepdim=True).values
    child = keep_neurons(model, mask)
    handles = []
    for layer in range(len(mask)):
        block = child_layers(plain)[layer]
        down = [m for m in block.modules() if isinstance(m, torch.nn.Linear) and m.in_features == mask.shape[1]][-1]
        handles.append(down.register_forward_pre_hook(lambda _, args, n=layer: (args[0] * mask[n], *args[1:])))
    with torch.no_grad():
        wanted = plain(input_ids=TOKENS, use_cache=False).logits
    assert torch.allclose(child.model(TOKENS), wanted, atol=1e-4)
    assert child.model.network.neuron_hook_point(0, "post").width == int(mask[0].sum())


def child_layers(plain: torch.nn.Module) -> torch.nn.ModuleList:
    lists = [one for one in plain.modules() if isinstance(one, torch.nn.ModuleList)]
    return max(lists, key=lambda one: sum(p.numel() for p in one.parameters()))


def test_an_expert_is_best_at_its_own_texts(llama: wb.model.LanguageModel) -> None:
    lines = tiny.TEXT.strip().split("\n")
    corpora = {"animals": wb.Corpus(lines[:1] * 3), "boats": wb.Corpus(lines[2:3] * 3)}
    kls = {
        (made, judged): DenseKL(llama, corpora[judged], 60, context=40)(
            extract_expert(llama, corpora[made], 0.4, tokens=60).model.network.module
        )
        for made in corpora
        for judged in corpora
    }
    own = kls["animals", "animals"] + kls["boats", "boats"]
    assert own < kls["animals", "boats"] + kls["boats", "animals"]


def test_experts_that_cannot_be_cut(llama: wb.model.LanguageModel) -> None:
    for keep in (0.0, 1.0, -1, 2.0, 0.001):
        with pytest.raises(SurgeryError, match="some of the 48 neurons stay and some go"):
            extract_expert(llama, CORPUS, keep)
    with pytest.raises(SurgeryError, match="keep is a number, not nan"):
        extract_expert(llama, CORPUS, float("nan"))
    mask = torch.ones(3, 48, dtype=torch.bool)
    mask[1, 5:] = False
    with pytest.raises(SurgeryError, match=r"these keep \[5, 48\]"):
        keep_neurons(llama, mask)
    with pytest.raises(SurgeryError, match=r"bool \[3, 48\]"):
        keep_neurons(llama, mask[:2])
    with pytest.raises(SurgeryError, match="at least one"):
        keep_neurons(llama, torch.zeros(3, 48, dtype=torch.bool))
    with pytest.raises(Cancelled):
        extract_expert(llama, CORPUS, cancel=lambda: True)
    assert apply_operation(llama, "extract_expert", keep=0.5, tokens=64).model.network.config.intermediate_size == 24

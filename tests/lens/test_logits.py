"""A logit as a sum, against sums made by hand on plain transformers and against TransformerLens's own."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
import zoo
from test_read_lens import IDS

import workbench as wb
from workbench.lens import LensError, attribute_logit

EXPERTS = ["mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss", "olmoe", "granite-moe", "deepseek-v2"]


def total(found) -> float:
    return sum(share.value for share in found.shares)


@pytest.mark.parametrize("name", zoo.sample(3, always=("gemma2", "cohere"), without=(*zoo.UNOPENED, *EXPERTS)))
@pytest.mark.parametrize("detail", ["parts", "heads", "neurons"])
def test_the_parts_sum_to_the_logit(name, detail):
    module = zoo.build(name)
    with torch.no_grad():
        logits = module(input_ids=IDS[None]).logits[0, -3]
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    for target, logit in [(7, logits[7]), ((7, 9), logits[7] - logits[9]), (None, logits.max())]:
        found = attribute_logit(model, IDS, target, position=-3, detail=detail)
        assert math.isclose(found.logit, float(logit), abs_tol=1e-4 * float(logits.abs().max()))
        assert math.isclose(total(found), float(logit), abs_tol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_part_is_what_the_plain_module_adds(name):
    module = zoo.build(name)
    llama = name == "llama"
    layers = module.model.layers if llama else module.transformer.h
    norm = module.model.norm if llama else module.transformer.ln_f
    seen: dict[str, torch.Tensor] = {}

    def keep(key):
        def hook(_, args, out):
            seen[key] = (out[0] if isinstance(out, tuple) else out)[0, -1]
            seen[f"{key} in"] = args[0][0, -1] if args else None

        return hook

    for number, layer in enumerate(layers):
        attention, mlp = (layer.self_attn, layer.mlp) if llama else (layer.attn, layer.mlp)
        attention.register_forward_hook(keep(f"attention {number}"))
        (attention.o_proj if llama else attention.c_proj).register_forward_hook(keep(f"out {number}"))
        mlp.register_forward_hook(keep(f"MLP {number}"))
        (mlp.down_proj if llama else mlp.c_proj).register_forward_hook(keep(f"down {number}"))
    norm.register_forward_hook(keep("norm"))
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    with torch.no_grad():
        module(input_ids=IDS[None])
        x = seen["norm in"]
        spread = x.var(unbiased=False) + 1e-5 if not llama else x.square().mean() + module.config.rms_norm_eps
        reading = (module.lm_head.weight[3] - module.lm_head.weight[8]) * norm.weight / spread.sqrt()

        def share(part: torch.Tensor) -> float:
            return float((part if llama else part - part.mean()) @ reading)

        by_label = {one.label: one.value for one in attribute_logit(model, IDS, (3, 8)).shares}
        for number in range(zoo.LAYERS):
            for part in ("attention", "MLP"):
                assert math.isclose(by_label[f"{part} {number}"], share(seen[f"{part} {number}"]), abs_tol=2e-5)
        fine = attribute_logit(model, IDS, (3, 8), detail="neurons", top=10_000)
        by_label = {one.label: one.value for one in fine.shares}
        for number, layer in enumerate(layers):
            weight = layer.self_attn.o_proj.weight.T if llama else layer.attn.c_proj.weight  # [heads * d_head, d_model]
            z = seen[f"out {number} in"].view(model.network.n_heads, -1)
            for head in range(len(z)):
                made = share(z[head] @ weight.view(len(z), -1, weight.shape[1])[head])
                assert math.isclose(by_label[f"head {number}.{head}"], made, abs_tol=2e-5)
            down = layer.mlp.down_proj.weight.T if llama else layer.mlp.c_proj.weight
            acts = seen[f"down {number} in"]
            for neuron in (0, 5, len(acts) - 1):
                label = f"neurons.{number}.post:{neuron}"
                assert math.isclose(by_label[label], share(acts[neuron] * down[neuron]), abs_tol=2e-5)


def test_neurons_that_are_not_kept_are_in_the_rest():
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    every = attribute_logit(model, IDS, 7, detail="neurons", top=10_000)
    some = attribute_logit(model, IDS, 7, detail="neurons", top=4)
    neurons = [share for share in some.shares if share.kind == "neuron"]
    largest = [share for share in every.largest if share.kind == "neuron"][:4]
    assert {share.label for share in neurons} == {share.label for share in largest}
    assert math.isclose(total(some), total(every), abs_tol=1e-5)


def test_interventions_act_and_the_sum_holds():
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    edits = [wb.Clamp("neurons.1.post:7", 9.0)]
    plain, edited = attribute_logit(model, IDS, 7), attribute_logit(model, IDS, 7, interventions=edits)
    assert abs(plain.logit - edited.logit) > 1e-3
    with model.intervening(edits):
        assert math.isclose(edited.logit, float(model(IDS)[0, -1, 7]), abs_tol=1e-5)
    assert math.isclose(total(edited), edited.logit, abs_tol=1e-4)


def test_wrong_requests_are_one_sentence():
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    for arguments, words in [
        ({"target": "The dog ran"}, "tokens for this model"),
        ({"target": (3, 3)}, "the same"),
        ({"target": 10_000}, "id from 0 to"),
        ({"position": 9}, "no position 9"),
        ({"detail": "latents"}, "detail"),
    ]:
        with pytest.raises(LensError, match=words):
            attribute_logit(model, IDS, **arguments)
    experts = wb.load_model(zoo.build("mixtral"), tokenizer=tiny.tokenizer())
    with pytest.raises(LensError, match="neurons of its own"):
        attribute_logit(experts, IDS, detail="neurons")

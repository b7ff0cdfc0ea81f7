"""Latents in the sum of a logit, against products made by hand on plain transformers, and against the parts."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
import zoo
from test_read_lens import IDS

import workbench as wb
from workbench.dictionaries import Dictionary
from workbench.lens import LensError, attribute_logit

RESID, MLP, Z = "blocks.1.hook_resid_post", ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"), "blocks.1.attn.hook_z"


def sums(found, label: str) -> float:
    """What belongs to a part: the shares of it, or of the dictionaries that stand for it."""
    return sum(one.value for one in found.shares if label in one.label or one.kind == "latent" or "other" in one.label)


def noisy(sae):
    """A dictionary whose every tensor is random, so that a bias or a path left out shows."""
    chance = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=chance))
    return sae


@pytest.mark.parametrize("place", ["stream", "transcoder", "heads"])
def test_each_latent_is_its_row_times_its_value(place):
    module = zoo.build("llama")
    layer, norm, seen = module.model.layers[1], module.model.norm, {}
    layer.register_forward_hook(lambda _, __, out: seen.update(stream=(out[0] if isinstance(out, tuple) else out)[0]))
    layer.mlp.register_forward_hook(lambda _, args, out: seen.update(mlp_in=args[0][0], mlp=out[0]))
    layer.self_attn.o_proj.register_forward_hook(lambda _, args, out: seen.update(z=args[0][0], attention=out[0]))
    norm.register_forward_hook(lambda _, args, out: seen.update(end=args[0][0]))
    sae = {
        "stream": lambda: wb.TopKSAE(32, 24, 4, hook_point=RESID, name="s"),
        "transcoder": lambda: wb.dictionaries.TopKSkipTranscoder(32, 24, 4, reads=MLP[0], writes=MLP[1], name="s"),
        "heads": lambda: wb.TopKSAE(32, 24, 4, hook_point=Z, name="s"),
    }[place]()
    noisy(sae)
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    found = {one.label: one for one in attribute_logit(model, IDS, (3, 8), detail="latents", dictionaries=[sae]).shares}
    with torch.no_grad():
        logits = module(input_ids=IDS[None]).logits[0, -1]
        end = seen["end"][-1]
        scale = (end.square().mean() + module.config.rms_norm_eps).rsqrt()
        reading = (module.lm_head.weight[3] - module.lm_head.weight[8]) * norm.weight * scale
        read, whole = {
            "stream": (seen.get("stream"), seen.get("stream")),
            "transcoder": (seen.get("mlp_in"), seen.get("mlp")),
            "heads": (seen.get("z"), seen.get("z")),
        }[place]
        out = layer.self_attn.o_proj.weight.T if place == "heads" else torch.eye(32)
        codes = sae.encode(read[-1:])
        for index, value in zip(codes.indices[0].tolist(), codes.values[0].tolist(), strict=True):
            made = float(value * sae.W_dec[index] @ out @ reading)
            assert math.isclose(found[f"s:{index}"].value, made, abs_tol=2e-5)
        error = float((whole[-1] - sae.reconstruct(read[-1:])[0]) @ out @ reading)
    where = {"stream": "the stream at layer 1", "transcoder": "MLP 1", "heads": "attention 1"}[place]
    assert math.isclose(found[f"s, error at {where}"].value, error, abs_tol=2e-5)
    assert math.isclose(sum(one.value for one in found.values()), float(logits[3] - logits[8]), abs_tol=1e-4)
    assert ("embedding" in found) == (place != "stream")


@pytest.mark.parametrize("name", zoo.sample(1, always=("gemma2",), without=zoo.UNOPENED))
@pytest.mark.parametrize(("point", "part"), [("hook_mlp_out", "MLP 1"), ("attn.hook_z", "attention 1")])
def test_the_latents_sum_to_the_part(name, point, part):
    model = wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())
    where = model.hook_points[f"blocks.1.{point}"]
    sae = noisy(wb.TopKSAE(where.width, 24, 4, hook_point=where.name, name="s"))
    try:
        fine = attribute_logit(model, IDS, 7, detail="latents", dictionaries=[sae], top=2)
    except LensError as error:
        assert "can't be read alone" in str(error) or "does not stand where" in str(error), error  # noqa: PT017
        return
    parts = {one.label: one.value for one in attribute_logit(model, IDS, 7).shares}
    assert math.isclose(sums(fine, part), parts[part], abs_tol=1e-4 * max(1, abs(parts[part])))
    assert len([one for one in fine.shares if one.kind == "latent"]) == 2
    for other, value in parts.items():
        if other != part:
            assert math.isclose({one.label: one.value for one in fine.shares}[other], value, abs_tol=1e-6)


def test_a_latent_of_several_layers_is_one_share():
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())
    layers = range(zoo.LAYERS)
    reads = " + ".join(f"blocks.{n}.mlp.hook_in" for n in layers)
    writes = " + ".join(f"blocks.{n}.hook_mlp_out" for n in layers)
    across = noisy(wb.dictionaries.CrossLayerTranscoder(96, 36, layers=3, reads=reads, writes=writes, name="c"))
    found = attribute_logit(model, IDS, 7, detail="latents", dictionaries=[across], top=99)
    labels = [one.label for one in found.shares]
    assert len(set(labels)) == len(labels)
    assert math.isclose(sum(one.value for one in found.shares), found.logit, abs_tol=1e-4)
    parts = {one.label: one.value for one in attribute_logit(model, IDS, 7).shares}
    assert math.isclose(sums(found, "MLP"), sum(parts[f"MLP {n}"] for n in layers), abs_tol=1e-4)
    first = next(one for one in found.shares if one.kind == "latent" and one.label.split(":")[1] < "12")
    assert first.layer == 0


def test_every_kind_sums():
    module = tiny.build("llama", hidden_size=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2)
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    tried = 0
    for kind in Dictionary.kinds.values():
        one = kind.example() if not kind.of_model else None
        if one is None or one.n_reads > 1 or (one.d_in, one.d_out) != (8, 8):
            continue
        one.reads, one.writes = MLP if one.transcodes else (RESID, RESID)
        one.name = "s"
        found = attribute_logit(model, IDS, 7, detail="latents", dictionaries=[one])
        assert math.isclose(sum(share.value for share in found.shares), found.logit, abs_tol=1e-4), kind
        tried += 1
    assert tried > 8


def test_dictionaries_that_do_not_fit_are_one_sentence():
    model = wb.load_model(zoo.build("llama"), tokenizer=tiny.tokenizer())

    def sae(point: str, name: str = "s"):
        return wb.TopKSAE(model.hook_points[point].width, 24, 4, hook_point=point, name=name)

    for given, words in [
        ([], "together with"),
        ([sae(Z), sae("blocks.1.hook_attn_out", "t")], "same part, attention 1"),
        ([sae(RESID), sae(Z, "t")], "contained in the stream"),
        ([sae(RESID), sae("blocks.0.hook_resid_post", "t")], "contained in the stream"),
        ([sae("blocks.1.ln1.hook_in")], "can't be read alone|no part"),
        ([sae("hook_embed")], "no part of a layer"),
        ([sae("blocks.0.hook_mlp_out"), sae("blocks.1.hook_mlp_out")], "Two dictionaries are called"),
    ]:
        with pytest.raises(LensError, match=words):
            attribute_logit(model, IDS, detail="latents", dictionaries=given)
    with pytest.raises(LensError, match="together with"):
        attribute_logit(model, IDS, dictionaries=[sae(RESID)])

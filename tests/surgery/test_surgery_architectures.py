"""Operations on experts, on inputs of other forms, on buffers, and on attentions that change their keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
import zoo

import workbench as wb
from workbench.model.weights import parameters_of
from workbench.surgery.child import SurgeryError, make_child
from workbench.surgery.finetuning.healing import heal
from workbench.surgery.opening import open_child
from workbench.surgery.operations.dare import dare
from workbench.surgery.operations.kv_heads import merge_kv_heads
from workbench.surgery.operations.matrices import MatrixLevels, input_norms, inputs_by_token, matrices
from workbench.surgery.operations.pruning import prune, search_sparsity
from workbench.surgery.operations.quantising import quantise, rounded
from workbench.surgery.operations.weights import all_matrices

pytestmark = pytest.mark.usefixtures("tiny_cache")

CORPUS = wb.Corpus([*tiny.TEXT.strip().split("\n"), tiny.TEXT])
TOKENS = torch.arange(20)[None] * 37 % tiny.VOCAB
TURNED = {"mixtral": False, "gpt-oss": True, "granite-moe": False, "deepseek-v2": False}
"""Whether experts are stored as `[experts, in, out]`."""


def opened(name: str) -> wb.model.LanguageModel:
    return wb.load_model(zoo.build(name), tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("name", TURNED)
def test_each_expert_is_a_matrix(name: str) -> None:
    model, turned = opened(name), TURNED[name]
    half, coarse = prune(model, 0.5, score="magnitude"), quantise(model, 3)
    old, cut, few = (parameters_of(one.network.module) for one in (model, half.model, coarse.model))
    experts = [path for path, one in old.items() if one.ndim == 3]
    assert len(experts) >= 4
    for path in experts:
        for before, after, steps in zip(old[path], cut[path], few[path], strict=True):
            rows = (before.T, after.T, steps.T) if turned else (before, after, steps)
            assert bool(((rows[1] == 0).sum(1) == rows[0].shape[1] // 2).all())
            assert torch.equal(rows[2], rounded(rows[0], 3))
    assert half.history[-1]["covered"] == coarse.history[-1]["covered"] > 0.95
    with pytest.raises(SurgeryError, match="Wanda needs the inputs of every matrix"):
        prune(model, 0.5, corpus=CORPUS)
    with pytest.raises(SurgeryError, match="Wanda needs the inputs of every matrix"):
        search_sparsity(model, CORPUS, passes=5, tokens=32)
    with pytest.raises(SurgeryError, match="so its zeros can't be kept"):
        heal(half, CORPUS, tokens=32)


def test_levels_of_experts_are_put_in_place_and_taken_back() -> None:
    model = opened("gpt-oss")
    space = MatrixLevels(model, [lambda _, w: rounded(w, 2)], [16, 2])
    before = space.module(input_ids=TOKENS).logits.detach()
    levels = tuple(int(part.endswith("experts.down_proj.1")) for part in space.parts)
    space.set(levels)
    assert not torch.equal(space.module(input_ids=TOKENS).logits, before)
    space.set((0,) * len(levels))
    assert torch.equal(space.module(input_ids=TOKENS).logits, before)
    old = parameters_of(model.network.module)
    for name, tensor in space.tensors(levels).items():
        assert torch.equal(tensor[1].T, rounded(old[name][1].T, 2))
        assert torch.equal(tensor[0], old[name][0])
    assert len(all_matrices(model)) == len(space.parts)


def test_inputs_of_every_form_are_read_by_token() -> None:
    x = torch.randn(2, 5, 3)
    for form in (x, x.view(10, 3), x.view(2, 1, 5, 3)):
        assert torch.equal(inputs_by_token(form, (2, 5), "here"), x)
    for form in (x.transpose(0, 1), x[:, :4], x.view(10, 3)[:7]):
        with pytest.raises(SurgeryError, match="The input of here"):
            inputs_by_token(form, (2, 5), "here")
    model = opened("opt")
    norms = input_norms(model, CORPUS, 50, context=20, batch=2)
    assert set(norms) == set(matrices(model))
    child = prune(model, 0.5, corpus=CORPUS, tokens=50)
    assert child.history[-1]["covered"] == 1.0


def test_a_checkpoint_that_opens_as_another_model_is_not_saved(tmp_path: Path) -> None:
    child = prune(opened("falcon-alibi"), 0.1, score="magnitude")
    with pytest.raises(SurgeryError, match="would not compute the same"):
        child.save_pretrained(tmp_path / "child")
    assert not (tmp_path / "child").exists()


@pytest.mark.parametrize(
    ("name", "method"), [("stablelm-parallel", "mean"), ("stablelm-parallel", "svd"), ("stablelm", "svd")]
)
def test_heads_are_not_joined_where_keys_are_more_than_rotated(name: str, method: str) -> None:
    with pytest.raises(SurgeryError, match="where they hold the same, a logit moves by"):
        merge_kv_heads(opened(name), 1, method=method, corpus=CORPUS, tokens=32)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "method"), [("qwen3", "svd"), ("cohere", "svd")])
def test_norms_of_keys_and_other_planes_show(name: str, method: str) -> None:
    with pytest.raises(SurgeryError, match="where they hold the same, a logit moves by"):
        merge_kv_heads(opened(name), 1, method=method, corpus=CORPUS, tokens=32)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [None, 30.0, 300.0])
def test_clipping_shows_where_no_text_reaches_it(limit: float | None) -> None:
    """Keys, values and queries of the plain model stay far below these limits."""
    model = wb.load_model(zoo.build("olmo", clip_qkv=limit), tokenizer=tiny.tokenizer())
    points = [f"blocks.{layer}.attn.hook_{part}" for layer in range(3) for part in "qkv"]
    assert max(float(x.abs().max()) for x in model.capture(TOKENS, points).values()) < 15
    if limit is None:
        merge_kv_heads(model, 1, corpus=CORPUS, tokens=32)
    else:
        with pytest.raises(SurgeryError, match=r"a logit moves by .*; take the mean"):
            merge_kv_heads(model, 1, corpus=CORPUS, tokens=32)
    merge_kv_heads(model, 1, method="mean")


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_clipping_of_one_kind_shows(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that no configuration names, of queries, keys or values alone."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    plain = LlamaAttention.__init__

    def clipping(self: torch.nn.Module, *args: object, **how: object) -> None:
        plain(self, *args, **how)  # type: ignore[arg-type]
        getattr(self, part).register_forward_hook(lambda _, __, out: out.clamp(-50, 50))

    monkeypatch.setattr(LlamaAttention, "__init__", clipping)
    with pytest.raises(SurgeryError, match="a logit moves by"):
        merge_kv_heads(opened("llama"), 1, corpus=CORPUS, tokens=32)
    merge_kv_heads(opened("llama"), 1, method="mean")


@pytest.mark.parametrize("name", ["gpt-j", "opt", "xglm"])
def test_models_without_groups_of_heads_are_refused(name: str) -> None:
    with pytest.raises(SurgeryError, match="no key and value heads"):
        merge_kv_heads(opened(name), 1)


def test_buffers_go_with_the_child(tmp_path: Path) -> None:
    plain = zoo.build("apertus")
    for name, buffer in plain.named_buffers():
        if name.endswith("beta"):
            buffer.fill_(0.3)
    model = wb.load_model(plain, tokenizer=tiny.tokenizer())
    wanted = model(TOKENS)
    for child in (
        prune(model, 0.0, score="magnitude"),
        dare(model, model, 0.0),
        heal(model, CORPUS, tokens=32, lr=1e-12),
    ):
        assert torch.allclose(child.model(TOKENS), wanted, atol=1e-5)
    assert torch.allclose(quantise(model, 16).model(TOKENS), wanted, atol=1e-2)
    child = prune(model, 0.2, score="magnitude")
    child.save_pretrained(tmp_path / "child")
    again = open_child(tmp_path / "child", model)
    assert torch.allclose(again.model(TOKENS), child.model(TOKENS), atol=1e-5)
    other = make_child(model, {"model.layers.0.mlp.act_fn.beta": torch.tensor(0.7)}, {"operation": "other"})
    assert not torch.equal(other.model(TOKENS), wanted)
    with pytest.raises(SurgeryError, match=r"they differ in model\.layers\.0\.mlp\.act_fn\.beta"):
        dare(model, other, 0.0)

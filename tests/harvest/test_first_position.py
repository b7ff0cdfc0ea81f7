"""The first position of a window is left out, whatever token stands there; massive activations are counted."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import workbench as wb
from workbench.harvest import Harvest, HarvestError, Store
from workbench.index.layout import FeatureIndexError

pytestmark = pytest.mark.usefixtures("tiny_cache")

TEXTS = [f"{'The dog ran to the river. ' * (1 + number % 4)}And {number} cats." for number in range(30)]
CORPUS = wb.Corpus(TEXTS, "thirty")
POINT = "blocks.0.hook_resid_pre"


@pytest.fixture(scope="module")
def sink() -> wb.model.LanguageModel:
    """A tiny GPT-2 whose first position, and whose token " river", are a thousand times as long as the others."""
    module: Any = tiny.build("gpt2")
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach().clone())
    with torch.no_grad():
        module.transformer.wpe.weight[0] *= 1000
        module.transformer.wte.weight[tiny.tokenizer()(" river").input_ids[0]] *= 1000
    return wb.load_model(module, tokenizer=tiny.tokenizer())


def rivers(model: wb.model.LanguageModel, tokens: torch.Tensor) -> int:
    return int((tokens == model.tokenizer(" river").input_ids[0]).sum())


def test_the_first_position_is_left_out_and_others_are_counted(sink: wb.model.LanguageModel, tmp_path: Path) -> None:
    store = Store.write(Harvest(sink, CORPUS, POINT, context=16), tmp_path, dtype="float32")
    found = store[:]
    ids = [sink.tokenizer(text).input_ids for text in TEXTS]
    windows = [-(-len(one) // 16) for one in ids]
    assert len(store) == sum(map(len, ids)) - sum(windows) == CORPUS.count_tokens(sink, context=16)
    starts = {
        (text, part * len(ids[text]) // windows[text]) for text in range(len(TEXTS)) for part in range(windows[text])
    }
    assert not starts & set(zip(found.texts.tolist(), found.positions.tolist(), strict=True))
    assert store.note["massive"] == {POINT: rivers(sink, found.tokens)}
    assert 0 < store.note["massive"][POINT] < len(store) / 4
    assert CORPUS.count_tokens(sink, 20, context=16) == 20
    assert len(Harvest(sink, CORPUS, POINT, tokens=77, context=16).collect()) == 77


def test_fidelity_leaves_the_first_position_alone(sink: wb.model.LanguageModel) -> None:
    sae = wb.TopKSAE(d_in=32, width=48, k=4, hook_point=POINT)
    found = wb.measure_fidelity(sink, sae, CORPUS, context=16)
    harvested = Harvest(sink, CORPUS, POINT, context=16, tokens=8192).collect()
    assert found.tokens == len(harvested)
    assert found.massive == rivers(sink, harvested.tokens)
    x = harvested.values[POINT].double()
    off = (sae.reconstruct(x.float()).double() - x).square().sum()
    assert found.fvu == pytest.approx(float(off / (x - x.mean(0)).square().sum()), rel=1e-3)


def test_an_index_and_a_prompt_have_no_features_at_the_first_position(
    sink: wb.model.LanguageModel, tmp_path: Path
) -> None:
    index = wb.build_index(sink, "neurons.1.post", CORPUS, tmp_path / "index", context=16)
    assert index.n_tokens == CORPUS.count_tokens(sink, context=16)
    tokens = index.fires_on("The dog ran")
    assert not tokens[0].features
    assert all(token.features for token in tokens[1:])


def test_what_begins_with_bos_is_recorded_as_before(llama: wb.model.LanguageModel) -> None:
    model = copy.copy(llama)
    model.tokenizer = copy.deepcopy(tiny.tokenizer())
    assert Harvest(model, CORPUS, POINT).settings()["first_position"] == "left out"
    model.tokenizer.bos_token = "<|user|>"
    assert "first_position" not in Harvest(model, CORPUS, POINT).settings()


def test_a_cancel_that_is_true_once_leaves_the_work_undone(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    def once(at: int) -> Any:
        answers = iter([False] * at + [True])
        return lambda: next(answers, False)

    harvest = Harvest(llama, CORPUS, POINT, batch=4)
    part = Store.write(harvest, tmp_path / "store", cancel=once(2))
    assert not part.complete
    assert 0 < len(part) < len(Store.write(harvest, tmp_path / "store"))
    assert Store(tmp_path / "store").complete
    with pytest.raises(FeatureIndexError, match="cancelled"):
        wb.build_index(llama, "neurons.1.post", CORPUS, tmp_path / "index", batch=4, cancel=once(2))
    assert wb.build_index(llama, "neurons.1.post", CORPUS, tmp_path / "index", batch=4).n_tokens == len(
        harvest.collect()
    )


def test_float16_refuses_what_it_would_lose(tmp_path: Path) -> None:
    module: Any = tiny.build("gpt2")
    with torch.no_grad():
        module.transformer.wte.weight *= 1e-6
        module.transformer.wpe.weight *= 1e-6
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    harvest = Harvest(model, CORPUS, "hook_embed", tokens=50)
    with pytest.raises(HarvestError, match="too small for float16"):
        Store.write(harvest, tmp_path / "half")
    store = Store.write(harvest, tmp_path / "whole", dtype="float32")
    assert torch.equal(store[:].values["hook_embed"], harvest.collect().values["hook_embed"])
    assert json.loads((tmp_path / "whole" / "progress.json").read_text())["complete"]


def test_float16_keeps_a_row_that_is_small_beside_the_others(tmp_path: Path) -> None:
    """The error of such a row is below a thousandth of the others' length."""
    module: Any = tiny.build("gpt2")
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    river = model.to_tokens(" river")[0, -1]
    with torch.no_grad():
        module.transformer.wte.weight[river] *= 1e-6
    harvest = Harvest(model, CORPUS, "hook_embed")
    store = Store.write(harvest, tmp_path / "half")
    stored, exact = (one.values["hook_embed"] for one in (store[:], harvest.collect()))
    assert (exact.norm(dim=-1) < 1e-4 * exact.norm(dim=-1).median()).any()
    assert (stored - exact).norm(dim=-1).max() < 1e-3 * exact.norm(dim=-1).median()

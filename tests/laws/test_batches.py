"""A batch computes what each of its texts computes alone, whether or not the model sees later tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import zoo as architectures
from torch import Tensor

import workbench as wb
from workbench.harvest import Harvest
from workbench.model.sampling import PromptError
from workbench.surgery.certificate.certificate import certify
from workbench.surgery.operations.causal_mask import remove_causal_mask

pytestmark = pytest.mark.usefixtures("tiny_cache")

TEXTS = [f"{'The dog ran to the river. ' * (1 + number % 4)}And {number} cats." for number in range(9)]
CORPUS = wb.Corpus(TEXTS, "nine")
POINT = "blocks.1.hook_resid_post"
CAUSAL = ("mistral", "gemma2", "qwen3-moe", "gpt2", "bloom")
AHEAD = ("llama", "gemma3", "gpt2")


@pytest.fixture(scope="module")
def opened() -> Callable[[str], Any]:
    """A model, `name`; the child of one that sees ahead, `name ahead`; a child that can't be a model, as it is."""
    known: dict[str, Any] = {}

    def opening(name: str) -> Any:
        if name not in known:
            base, _, ahead = name.partition(" ")
            changes = {"use_bidirectional_attention": True} if ahead == "both ways" else {}
            model = wb.load_model(architectures.build(base, **changes), tokenizer=tiny.tokenizer())
            known[name] = remove_causal_mask(model) if ahead == "ahead" else model
        return known[name]

    return opening


def as_model(one: Any) -> wb.model.LanguageModel:
    return one if isinstance(one, wb.model.LanguageModel) else one.model


EVERY = [*CAUSAL, *(f"{name} ahead" for name in AHEAD), "gemma3 both ways"]
SEEING = [name for name in EVERY if " " in name]


@pytest.mark.parametrize("name", EVERY)
def test_a_model_says_whether_it_is_causal(name: str, opened: Callable[[str], Any]) -> None:
    model = as_model(opened(name))
    assert model.network.causal is (" " not in name)
    first, second = torch.tensor([[5, 9, 30, 7]]), torch.tensor([[5, 9, 30, 8]])
    assert torch.allclose(model(first)[0, :3], model(second)[0, :3], atol=1e-5) is (" " not in name)


@pytest.mark.parametrize("name", EVERY)
def test_harvested_activations_do_not_depend_on_the_batch(name: str, opened: Callable[[str], Any]) -> None:
    model = as_model(opened(name))
    found = Harvest(model, CORPUS, POINT, context=24, batch=4).collect()
    alone: dict[tuple[int, int], Tensor] = {}
    for text, words in enumerate(TEXTS):
        ids = model.tokenizer(words).input_ids
        parts = -(-len(ids) // 24)
        for part in range(parts):
            begin, end = part * len(ids) // parts, (part + 1) * len(ids) // parts
            states = model.capture(torch.tensor([ids[begin:end]]), [POINT])[POINT][0]
            alone |= {(text, begin + place): state for place, state in enumerate(states) if place}
    places = list(zip(found.texts.tolist(), found.positions.tolist(), strict=True))
    assert sorted(places) == sorted(alone)  # every token but the first of its window, once
    wanted = torch.stack([alone[place] for place in places])
    torch.testing.assert_close(found.values[POINT], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("left", [False, True])
def test_padding_is_not_seen_on_either_side(name: str, left: bool, opened: Callable[[str], Any]) -> None:
    model = as_model(opened(name))
    rows = [model.to_tokens(text)[0][:20] for text in (TEXTS[0], TEXTS[3])]
    longest = max(map(len, rows))
    tokens, mask = torch.full((2, longest), 3), torch.zeros(2, longest, dtype=torch.bool)
    for row, ids in enumerate(rows):
        at = slice(longest - len(ids), None) if left else slice(len(ids))
        tokens[row, at], mask[row, at] = ids, True
    whole = model(tokens, mask=mask)
    for row, ids in enumerate(rows):
        torch.testing.assert_close(whole[row][mask[row]], model(ids[None])[0], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", SEEING)
def test_a_model_that_sees_ahead_does_not_write(name: str, opened: Callable[[str], Any]) -> None:
    model = as_model(opened(name))
    for write in (
        lambda: model.generate("The dog", 3),
        lambda: wb.compare(model, "The dog", [wb.Scale("neurons.0.post:3", 2.0)], 3),
        lambda: wb.measures.dose_response(model, "The dog", " xylophone", [1.0], lambda _: []),
    ):
        with pytest.raises(PromptError, match="depend on later tokens"):
            write()


@pytest.mark.parametrize("name", ["llama ahead", "mistral"])
def test_fidelity_does_not_depend_on_the_batch(name: str, opened: Callable[[str], Any]) -> None:
    model = as_model(opened(name))
    sae = wb.TopKSAE(d_in=32, width=48, k=4, hook_point=POINT)
    one, other = (wb.measure_fidelity(model, sae, CORPUS, context=24, batch=batch).to_dict() for batch in (1, 4))
    for measure in ("tokens", "predictions", "l0", "fvu", "cosine", "ce", "ce_spliced", "ce_zero", "kl"):
        assert one[measure] == pytest.approx(other[measure], rel=1e-4), measure


def test_a_certificate_does_not_depend_on_the_batch(opened: Callable[[str], Any]) -> None:
    child = opened("llama ahead")
    found = [certify(child, CORPUS, 400, context=24, batch=batch).to_dict() for batch in (1, 2, 16)]
    for measure in ("perplexity_before", "perplexity_after", "kl", "same_top", "predictions"):
        assert found[1][measure] == pytest.approx(found[0][measure], rel=1e-4), measure
        assert found[2][measure] == pytest.approx(found[0][measure], rel=1e-4), measure

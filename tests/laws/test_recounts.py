"""What is reported is what happened: counts and shares of every kind of dictionary, recounted text by text.

The recount runs each window alone in a plain model with hooks of the tests, and reads its own windows from the
tokenizer. A kind that registers itself is recounted as well, by its `example()`.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from torch import Tensor

import workbench as wb
from workbench.dictionaries.protocol import Dictionary

pytestmark = pytest.mark.usefixtures("tiny_cache")

WINDOW = 16
CORPUS = wb.Corpus([f"{'The dog ran to the river. ' * (1 + n % 3)}And {n} cats." for n in range(7)], "seven")
KINDS = sorted(Dictionary.kinds.values(), key=lambda kind: kind.kind)
ELSEWHERE = {"key_value": "it writes classes, and no hook point of a model"}
"""Kinds that don't act on a model, with the reason."""
every_kind = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.kind not in ELSEWHERE], ids=lambda kind: kind.kind
)


@functools.cache
def plain(width: int) -> Any:
    """A model as wide as the examples of the kinds; half as wide for kinds that read two hook points."""
    return tiny.build("llama", hidden_size=width, num_attention_heads=2, num_key_value_heads=1)


@pytest.fixture(scope="module")
def models(_tiny_cache: Path) -> dict[int, wb.model.LanguageModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
        sizes = {"num_attention_heads": 2, "num_key_value_heads": 1}
        return {
            width: wb.load_model(tiny.build("llama", hidden_size=width, **sizes), tokenizer=tiny.tokenizer())
            for width in (8, 4)
        }


@pytest.fixture
def narrow(models: dict[int, wb.model.LanguageModel], request: pytest.FixtureRequest) -> wb.model.LanguageModel:
    """The model that fits the kind of the test."""
    kind = request.node.callspec.params.get("kind") if hasattr(request.node, "callspec") else None
    return models[4 if kind is not None and kind.across else 8]


def placed(kind: Any, model: wb.model.LanguageModel) -> Any:
    """A dictionary of this kind on the second layer, with all its numbers drawn anew."""
    if kind.of_model:
        return wb.interventions.dictionary_of(model, wb.Feature.parse("neurons.1.post:0"))
    made = kind.example()
    chance = torch.Generator().manual_seed(3)
    for name, tensor in made.state_dict().items():
        noise = torch.randn(tensor.shape, generator=chance)
        tensor.add_(0.1 * noise.abs() if "threshold" in name else 0.3 * noise)
    made.name = f"{kind.kind}-placed"
    made.reads, made.writes = "blocks.1.hook_resid_post", "blocks.1.hook_resid_post"
    if made.transcodes:
        made.reads, made.writes = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
    if made.across:
        made.reads = "blocks.0.mlp.hook_in + blocks.1.mlp.hook_in"
        made.writes = "blocks.1.hook_mlp_out + blocks.2.hook_mlp_out"
    return made


@dataclass(frozen=True)
class Window:
    """A window of a text that counts from its second token on."""

    text: int
    start: int
    ids: Tensor


def windows() -> list[Window]:
    """The windows of each text: as few as fit, of about equal length."""
    found = []
    for text, words in enumerate(CORPUS.texts):
        ids = tiny.tokenizer()(words, add_special_tokens=False).input_ids
        parts = -(-len(ids) // WINDOW)
        for part in range(parts):
            begin, end = part * len(ids) // parts, (part + 1) * len(ids) // parts
            found.append(Window(text, begin, torch.tensor([ids[begin:end]])))
    return found


Place = tuple[Any, str]
"""A plain module, and the side on which it is looked at or changed."""


def ends(dictionary: Any) -> tuple[list[Place], list[Place]]:
    """Where a dictionary reads and writes in the plain model."""
    if dictionary.across:
        mlps = [block.mlp for block in plain(4).model.layers]
        return [(mlps[0], "in"), (mlps[1], "in")], [(mlps[1], "out"), (mlps[2], "out")]
    block = plain(8).model.layers[1]
    if dictionary.dense:
        return [(block.mlp.down_proj, "in")], [(block.mlp.down_proj, "in")]
    if dictionary.transcodes:
        return [(block.mlp, "in")], [(block.mlp, "out")]
    return [(block, "out")], [(block, "out")]


def seen(module: Any, places: list[Place], ids: Tensor, edits: Any = ()) -> Tensor:
    """What stands at places in a pass of a plain model, side by side: `[pos, width]`."""
    return torch.cat([reference.seen_at(module, *place, ids, edits)[0] for place in places], -1)


def through(module: Any, dictionary: Any, ids: Tensor) -> list[reference.PlainEdit]:
    """Edits that put the reconstruction in the activations' place, one hook point after the other: what is read behind
    one is read in the run that it changed."""
    (reads, writes), edits = ends(dictionary), []
    for number, place in enumerate(writes):
        made = dictionary.reconstruct(seen(module, reads, ids, edits)).chunk(len(writes), -1)[number]
        edits += put(place, made)
    return edits


def losses(ids: Tensor, edits: Any = (), module: Any = None) -> Tensor:
    """Cross-entropies of the predictions from a token that counts of one that counts: `[pos - 2]`, float64."""
    logits = reference.logits_under(module or plain(8), ids, edits)[0].double().log_softmax(-1)
    return -logits[1:-1].gather(1, ids[0, 2:, None])[:, 0]


def put(place: tuple[Any, str], values: Tensor) -> list[reference.PlainEdit]:
    """An edit that puts values `[pos, width]` in place of what is there, from the second position on."""
    each = itertools.cycle(values[1:])
    return [reference.PlainEdit(*place, lambda _: next(each)[None], tuple(range(1, len(values))))]


@every_kind
def test_fidelity_is_what_a_recount_finds(kind: Any, narrow: wb.model.LanguageModel) -> None:
    dictionary = placed(kind, narrow)
    module, (reads, writes) = plain(4 if kind.across else 8), ends(dictionary)
    codes, error, written, cosine = [], [], [], []
    ce: dict[str, list[Tensor]] = {"ce": [], "ce_spliced": [], "ce_zero": []}
    for window in windows():
        x, y = (seen(module, some, window.ids) for some in (reads, writes))
        made = dictionary.reconstruct(x)
        codes.append(dictionary.encode(x).dense()[1:])
        written.append(y[1:].double())
        error.append((made - y)[1:].double())
        cosine.append(torch.cosine_similarity(made[1:].double(), y[1:].double(), dim=-1))
        nothing = [edit for place in writes for edit in put(place, torch.zeros(len(y), y.shape[1] // len(writes)))]
        spliced = through(module, dictionary, window.ids)
        for name, edits in (("ce", []), ("ce_spliced", spliced), ("ce_zero", nothing)):
            ce[name].append(losses(window.ids, edits, module))
    active, y = torch.cat(codes) != 0, torch.cat(written)
    wanted = {name: float(torch.cat(some).mean()) for name, some in ce.items()}
    wanted |= {
        "tokens": len(y),
        "predictions": len(torch.cat(ce["ce"])),
        "texts": len(CORPUS.texts),
        "l0": float(active.sum(1).double().mean()),
        "dead": float((active.sum(0) == 0).double().mean()),
        "fvu": float(torch.cat(error).square().sum() / (y - y.mean(0)).square().sum()),
        "cosine": float(torch.cat(cosine).mean()),
    }
    found = wb.measure_fidelity(narrow, dictionary, CORPUS, context=WINDOW, batch=3, resamples=9)
    for name, value in wanted.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    torch.testing.assert_close(found.density.double(), active.double().mean(0), rtol=1e-5, atol=1e-7)
    few = torch.cat([some for some, window in zip(codes, windows(), strict=True) if window.text == 0]) != 0
    found = wb.measure_fidelity(narrow, dictionary, wb.Corpus(CORPUS.texts[:1], "one"), context=WINDOW, resamples=9)
    assert found.tokens == len(few)
    assert found.dead == pytest.approx(float((few.sum(0) == 0).double().mean()))  # of few tokens many fire once
    torch.testing.assert_close(found.density.double(), few.double().mean(0), rtol=1e-5, atol=1e-7)


@every_kind
def test_an_index_holds_what_a_recount_finds(kind: Any, narrow: wb.model.LanguageModel, tmp_path: Path) -> None:
    dictionary = placed(kind, narrow)
    (reads, _), module = ends(dictionary), plain(4 if kind.across else 8)
    places, codes = [], []
    for window in windows():
        codes.append(dictionary.encode(seen(module, reads, window.ids)).dense()[1:].half())
        places += [(window.text, window.start + at) for at in range(1, window.ids.shape[1])]
    values = torch.cat(codes).float()
    index = wb.build_index(narrow, dictionary, CORPUS, tmp_path / "index", context=WINDOW, batch=3)
    assert index.n_tokens == len(values)
    counts = (values != 0).sum(0)
    assert index.statistics["active"].tolist() == counts.tolist()
    assert np.allclose(index.statistics["density"], counts / len(values))
    texts = [tiny.tokenizer()(words, add_special_tokens=False).input_ids for words in CORPUS.texts]
    for feature in range(dictionary.n_features):
        alone = values[:, feature]
        card = index.feature(feature)
        assert card.active == int(counts[feature])
        best = alone[alone != 0].sort(descending=True).values[: len(card.top_examples)].tolist()
        assert [one.value for one in card.top_examples] == pytest.approx(best, rel=2e-3, abs=1e-6)
        for one in card.top_examples:
            here = float(alone[places.index((one.text, one.position))])
            assert one.value == pytest.approx(here, rel=2e-3, abs=1e-6)
            begin = one.position - one.peak
            shown = narrow.token_texts(texts[one.text][begin : begin + len(one.tokens)])
            assert one.tokens == shown, "a context is a piece of its text"
            for step, value in enumerate(one.activations):
                known = (one.text, begin + step)
                if value is not None and known in places:
                    assert value == pytest.approx(float(alone[places.index(known)]), rel=2e-3, abs=1e-6)


def test_what_is_shown_passes_the_filters_it_was_asked_for(narrow: wb.model.LanguageModel, tmp_path: Path) -> None:
    dictionary = placed(Dictionary.kinds["topk"], narrow)
    index = wb.build_index(narrow, dictionary, CORPUS, tmp_path / "index", context=WINDOW, batch=3)
    density = index.statistics["density"]
    low, high = np.quantile(density, [0.3, 0.7]).tolist()
    inside = set(np.flatnonzero((density >= low) & (density <= high)).tolist())
    assert {hit.index for hit in index.search(density=(low, high), limit=None)} == inside
    for feature in (2, 5):
        index.star(feature)
        index.label(feature + 1, "a river")
    assert {hit.index for hit in index.search(starred=True, limit=None)} == {2, 5}
    assert {hit.index for hit in index.search(label="river", limit=None)} == {3, 6}
    assert {hit.index for hit in index.search(label="river", density=(low, high), limit=None)} == {3, 6} & inside
    for hit in index.search(token=" river", limit=None):
        assert " river" in [*hit.activating, *hit.promoted]
    marked = {(w.text, w.start + at) for w in windows() for at in range(1, w.ids.shape[1])} & _marked(r"(river)")
    hits = index.search(regex=r"(river)", min_recall=0.0, limit=None)
    assert hits
    for hit in hits:
        where = {(one.text, one.position) for one in index.examples(hit.index, n=index.n_tokens)}
        score = hit.score
        assert score is not None
        assert score.matches == len(marked)
        assert score.hits == len(where & marked)
        assert score.precision == pytest.approx(len(where & marked) / len(where))
        assert score.recall == pytest.approx(len(where & marked) / len(marked))
    assert len(index.search(density=(0.0, 1.0), limit=3)) == 3


def _marked(pattern: str) -> set[tuple[int, int]]:
    """Texts and positions of the tokens in which a match of a pattern's first group begins."""
    found = set()
    for text, words in enumerate(CORPUS.texts):
        offsets = tiny.tokenizer()(words, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        for match in re.finditer(pattern, words):
            found |= {(text, at) for at, (begin, end) in enumerate(offsets) if begin <= match.start(1) < end}
    return found


def test_the_tokens_of_a_fine_tune_are_those_it_learned_from(narrow: wb.model.LanguageModel) -> None:
    lines: list[Any] = []
    how: dict[str, Any] = {"batch": 3, "context": WINDOW}
    learned = wb.training.fine_tune(narrow, CORPUS, tokens=60, log=lines.append, **how)
    rows: list[int] = []
    for batch in CORPUS.batches(narrow, WINDOW, 3, seed=0, repeat=True):
        content = batch.mask & (torch.arange(batch.mask.shape[1]) > 0)  # this tokenizer puts no special token there
        rows.append(int(content[content.sum(1) > 1].sum()))
        if sum(rows) >= 60:
            break
    assert lines[-1]["tokens"] == sum(rows)
    assert learned.about["trained"]["tokens"] == sum(rows)


@pytest.mark.parametrize("operation", ["prune", "quantise"])
def test_the_share_that_an_operation_covers_is_counted(operation: str, narrow: wb.model.LanguageModel) -> None:
    how: dict[str, Any] = {"sparsity": 0.5, "score": "magnitude"} if operation == "prune" else {"bits": 3}
    child = wb.surgery.apply_operation(narrow, operation, **how)
    old, new = (dict(one.network.module.named_parameters()) for one in (narrow, child.model))
    inside = [name for name in old if ".layers." in name and old[name].ndim == 2]
    assert child.history[-1]["covered"] == pytest.approx(1.0)
    for name in old:
        assert torch.equal(old[name], new[name]) is (name not in inside), name
    if operation == "prune":
        zero = sum(int((new[name] == 0).sum()) for name in inside)
        assert zero / sum(new[name].numel() for name in inside) == pytest.approx(0.5, abs=1e-3)
    else:
        assert all(len(row.unique()) <= 7 for name in inside for row in new[name])

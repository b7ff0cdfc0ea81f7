"""Decoding against loops on small models: one whose meaning was written by hand, and random ones."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import zoo as architectures
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import workbench as wb
from workbench.neurons.unembedding import top_both

TOP = 10
GATED = [("llama", w) for w in ("gate", "up", "down")]
PLACES = GATED + [(name, w) for name in ("gpt2", "neox") for w in ("up", "down")]
SCALES = ["raw", "unit", "norm"]


# --- the two ends of each row of scores


@pytest.mark.parametrize("width", [5, 63, 64, 65, 128, 331, 700, 2048, 4113])
@pytest.mark.parametrize("top_k", [1, 4, 10])
@pytest.mark.parametrize("ties", [False, True])
def test_top_both_equals_topk(width: int, top_k: int, ties: bool) -> None:
    top_k = min(top_k, width)
    scores = torch.randn(7, width, generator=torch.Generator().manual_seed(width))
    scores = (scores * 2).round() if ties else scores
    values, columns = top_both(scores, top_k)
    assert values.shape == columns.shape == (2, 7, top_k)
    for side, signed in enumerate((scores, -scores)):
        assert torch.equal(values[side], signed.topk(top_k).values)
        assert torch.equal(signed.gather(1, columns[side]), values[side])
        assert all(len(set(row)) == top_k for row in columns[side].tolist()), "a token is named twice"
        if not ties:
            assert torch.equal(columns[side], signed.topk(top_k).indices)


def test_top_both_when_all_the_best_are_in_one_block_or_in_the_rest() -> None:
    scores = torch.zeros(2, 1000)
    scores[0, 128:140] = torch.arange(12.0) + 1
    scores[1, 990:1000] = torch.arange(10.0) + 1  # behind the last whole block
    scores[1, 3] = 0.5
    assert top_both(scores, 10)[1][0].tolist() == [list(range(139, 129, -1)), list(range(999, 989, -1))]
    assert top_both(-scores, 10)[1][1].tolist() == [list(range(139, 129, -1)), list(range(999, 989, -1))]


def test_a_table_in_the_cache_is_of_one_configuration(tiny_cache: Path) -> None:
    """Two models of equal weights, of which one halves what an MLP adds to the stream."""
    half, whole = (
        wb.load_model(architectures.build("granite", residual_multiplier=factor), tokenizer=tiny.tokenizer())
        for factor in (0.5, 1.0)
    )
    assert half.weights_hash == whole.weights_hash
    assert half.hash != whole.hash
    for _ in range(2):
        one, other = (wb.decode_neurons(model, "down", 3) for model in (half, whole))
        torch.testing.assert_close(torch.from_numpy(2 * one.scores), torch.from_numpy(other.scores))


# --- a model whose neurons' meanings are known


def meaning(layer: int, weights: str, index: int) -> tuple[int, int]:
    """The token that a neuron of the hand-set model stands for, and with which sign."""
    start = {"gate": 0, "up": 101, "down": 203}[weights]
    return (start + 37 * index + 11 * layer) % tiny.VOCAB, -1 if (index + layer) % 3 == 0 else 1


@pytest.fixture(scope="module")
def by_hand(_tiny_cache: Path) -> wb.model.LanguageModel:
    """A model whose LM head has rows of length 1 and whose neurons are multiples of them."""
    module: Any = tiny.build("llama", tie_word_embeddings=False)
    with torch.no_grad():
        module.lm_head.weight.copy_(nn.functional.normalize(module.lm_head.weight, dim=-1))
        for layer, block in enumerate(module.model.layers):
            for weights, matrix in tiny.weights(module, layer).items():
                for index in range(len(matrix)):
                    token, sign = meaning(layer, weights, index)
                    matrix[index] = sign * (1 + index / 10) * module.lm_head.weight[token]
            assert torch.equal(block.mlp.gate_proj.weight, tiny.weights(module, layer)["gate"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
        return wb.load_model(module, tokenizer=tiny.tokenizer())


@pytest.mark.parametrize("weights", ["gate", "up", "down"])
@pytest.mark.parametrize("scale", ["raw", "unit"])
def test_neurons_decode_to_what_was_written_into_them(tiny_cache, by_hand, weights: Any, scale: Any) -> None:
    table = wb.decode_neurons(by_hand, weights, 3, scale=scale)
    assert len(table) == 3 * 48
    for row in range(len(table)):
        layer, index = divmod(row, 48)
        token, sign = meaning(layer, weights, index)
        hit = table.hit(row, sign)
        assert hit.tokens[0] == tiny.tokenizer().decode([token])
        assert hit.scores[0] == pytest.approx(1 + index / 10 if scale == "raw" else 1, rel=1e-4)
        assert (hit.layer, hit.index, hit.sign, hit.rank) == (layer, index, sign, 0)
        site = "post" if weights == "down" else weights
        assert str(hit.feature) == f"neurons.{layer}.{site}:{index}"
        assert table.row(hit.feature) == row
        assert int(wb.neurons.token_scores(by_hand, hit.feature, scale=scale).mul(sign).argmax()) == token


@pytest.mark.parametrize("weights", ["gate", "up", "down"])
def test_the_reverse_question_finds_the_strongest_writer(by_hand, weights: Any) -> None:
    """The longest vector written for a token comes first for it, and last for its opposite."""
    model = copy.copy(by_hand)
    site = "post" if weights == "down" else weights
    for sign in (1, -1):
        index, layer = next((i, n) for i in range(47, -1, -1) for n in range(3) if meaning(n, weights, i)[1] == sign)
        token = meaning(layer, weights, index)[0]
        model.to_tokens = lambda text, start=True, token=token: torch.tensor([[token]])  # type: ignore[method-assign]
        found = wb.neurons.neurons_writing(model, "any text", weights, top=3 * 48)
        feature, score = found[0 if sign == 1 else -1]
        assert score == pytest.approx(sign * (1 + index / 10), rel=1e-4)
        same = [meaning(n, weights, index) for n in range(3)].count((token, sign))
        assert same == 1
        assert str(feature) == f"neurons.{layer}.{site}:{index}"


# --- random models, loops


def adjusted(module: nn.Module, vector: Tensor, scale: str) -> Tensor:
    """What a scale means, for one vector, in double precision."""
    vector = vector.double()
    if scale == "raw":
        return vector
    if scale == "unit":
        return vector / vector.norm()
    kind = type(module).__name__
    decoder: Any = module.get_decoder()  # type: ignore[operator]
    if kind == "LlamaForCausalLM":
        return vector / (vector**2).mean().sqrt() * decoder.norm.weight.detach().double()
    norm = decoder.ln_f if kind == "GPT2LMHeadModel" else decoder.final_layer_norm
    vector = vector - vector.mean()
    return vector / (vector**2).mean().sqrt() * norm.weight.detach().double()


def all_scores(name: str, weights: str, scale: str) -> Tensor:
    """Every neuron's score for every token, `[neurons, vocab]`, one neuron at a time."""
    module: Any = tiny.build(name)
    head = module.get_output_embeddings().weight.detach().double()
    vectors = [v for layer in range(module.config.num_hidden_layers) for v in tiny.weights(module, layer)[weights]]
    return torch.stack([head @ adjusted(module, vector, scale) for vector in vectors])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "weights"), PLACES)
def test_decoding_equals_a_loop(zoo, tiny_cache, name: str, weights: Any, scale: Any) -> None:
    table = wb.decode_neurons(zoo[name], weights, TOP, scale=scale)
    expected = all_scores(name, weights, scale)
    assert table.tokens.shape == table.scores.shape == (2, len(expected), TOP)
    for side, signed in enumerate((expected, -expected)):
        best = signed.topk(TOP + 1, dim=-1)
        found = torch.from_numpy(table.scores[side]).double()
        assert torch.allclose(found, best.values[:, :TOP], rtol=1e-4, atol=1e-4)
        apart = (best.values[:, :-1] - best.values[:, 1:]).amin(-1) > 1e-4  # no two nearly equal
        tokens = torch.from_numpy(table.tokens[side]).long()
        assert torch.equal(tokens[apart], best.indices[apart, :TOP])
        assert apart.float().mean() > 0.9


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "weights"), PLACES)
def test_one_neurons_scores_equal_a_loop(zoo, name: str, weights: Any, scale: Any) -> None:
    expected = all_scores(name, weights, scale)
    width = len(expected) // zoo[name].network.n_layers
    site = "post" if weights == "down" else weights
    for layer, index in ((0, 0), (1, 5), (1, width - 1)):
        feature = wb.Feature(f"neurons.{layer}.{site}", index)
        found = wb.neurons.token_scores(zoo[name], feature, scale=scale)
        assert torch.allclose(found.double(), expected[layer * width + index], rtol=1e-4, atol=1e-4)
        again = wb.neurons.token_scores(zoo[name], wb.Feature(f"neurons.{layer}.up", index), weights, scale)
        assert torch.equal(again, found)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "weights"), [("llama", "gate"), ("gpt2", "down"), ("neox", "up")])
def test_excess_is_above_random_directions_of_the_same_norm(
    zoo, tiny_cache, name: str, weights: Any, scale: Any
) -> None:
    module: Any = tiny.build(name)
    head = module.get_output_embeddings().weight.detach().double()
    chance = torch.Generator().manual_seed(77)
    directions = torch.randn(6000, head.shape[1], generator=chance, dtype=torch.float64)
    directions /= directions.norm(dim=-1, keepdim=True)
    best = torch.stack([(head @ adjusted(module, direction, scale)).max() for direction in directions])
    table = wb.decode_neurons(zoo[name], weights, TOP, scale=scale)
    vectors = [v for layer in range(module.config.num_hidden_layers) for v in tiny.weights(module, layer)[weights]]
    norms = torch.stack([v.norm() for v in vectors]).double() if scale == "raw" else torch.ones(len(vectors))
    for side in (0, 1):
        expected = (torch.from_numpy(table.scores[side, :, 0]).double() / norms - best.mean()) / best.std()
        found = torch.from_numpy(table.excess[side]).double()
        assert ((found - expected).abs() < 0.2 + 0.1 * expected.abs()).all()
        assert found[0] == pytest.approx(table.hit(0, 1 if side == 0 else -1).excess)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("name", "weights"), PLACES)
def test_neurons_writing_equals_a_loop(zoo, name: str, weights: Any, scale: Any) -> None:
    expected = all_scores(name, weights, scale)
    width, site = len(expected) // zoo[name].network.n_layers, "post" if weights == "down" else weights
    for text in (" dog", "a", "\n"):
        token = tiny.tokenizer()(text).input_ids[0]
        best = expected[:, token].topk(6)
        found = wb.neurons.neurons_writing(zoo[name], text, weights, scale=scale, top=6)
        rows = best.indices.tolist()
        assert [str(f) for f, _ in found] == [f"neurons.{row // width}.{site}:{row % width}" for row in rows]
        assert [score for _, score in found] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert len(wb.neurons.neurons_writing(zoo[name], "a", weights, top=10**6)) == len(expected)
    column = expected[:, tiny.tokenizer()(" dog").input_ids[0]]
    for sign, layers in ((1, (1,)), (-1, None), (-1, (1, 0)), (1, ())):
        least = float(column.std()) / 2
        wanted = {
            f"neurons.{row // width}.{site}:{row % width}": sign * score
            for row, score in enumerate(column.tolist())
            if (layers is None or row // width in layers) and sign * score >= least
        }
        how: dict[str, Any] = {"scale": scale, "sign": sign, "layers": layers, "min_score": least}
        found = wb.neurons.neurons_writing(zoo[name], " dog", weights, **how, top=10**6)
        assert {str(f): score for f, score in found} == pytest.approx(wanted, abs=1e-4)
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    with pytest.raises(wb.neurons.NeuronError, match="no layer 99"):
        wb.neurons.neurons_writing(zoo[name], " dog", weights, layers=[99])


@pytest.mark.parametrize(("name", "weights"), PLACES)
def test_nearest_neurons_equal_a_loop(zoo, name: str, weights: str) -> None:
    module: Any = tiny.build(name)
    layers = module.config.num_hidden_layers
    site = "post" if weights == "down" else weights
    vectors = {
        (layer, index): vector.double()
        for layer in range(layers)
        for index, vector in enumerate(tiny.weights(module, layer)[weights])
    }
    own = vectors[1, 3]
    cosines = sorted(
        ((float(own @ v / own.norm() / v.norm()), place) for place, v in vectors.items() if place != (1, 3)),
        reverse=True,
    )
    found = wb.neurons.nearest_neurons(zoo[name], wb.Feature(f"neurons.1.{site}", 3), top=8)
    assert [str(f) for f, _ in found] == [f"neurons.{layer}.{site}:{index}" for _, (layer, index) in cosines[:8]]
    assert [cosine for _, cosine in found] == pytest.approx([cosine for cosine, _ in cosines[:8]], abs=1e-5)
    assert len(wb.neurons.nearest_neurons(zoo[name], wb.Feature(f"neurons.1.{site}", 3), top=10**6)) == len(vectors) - 1


def test_pruned_neurons_do_no_harm(tiny_cache) -> None:
    """A neuron of zeros has no meaning; it is nobody's neighbour and has no score that is not a number."""
    module: Any = tiny.build("llama")
    with torch.no_grad():
        for block in module.model.layers:
            block.mlp.gate_proj.weight[5] = 0
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    for scale in ("raw", "unit", "norm"):
        table = wb.decode_neurons(model, "gate", 3, scale=scale)  # type: ignore[arg-type]
        assert (abs(table.scores) < 1e6).all()
        assert (abs(table.excess) < 1e6).all()
        assert (table.scores[:, 5] == 0).all()
        assert all(
            abs(score) < 1e6 for _, score in wb.neurons.neurons_writing(model, "a", "gate", scale=scale, top=200)
        )  # type: ignore[arg-type]
    nearest = wb.neurons.nearest_neurons(model, wb.Feature("neurons.0.gate", 3), top=20)
    assert all(feature.index != 5 for feature, _ in nearest)


# --- search


def matches(word: str, text: str, match: str) -> bool:
    if match == "exact":
        return word == text
    folded = word.strip().casefold(), text.strip().casefold()
    return folded[0] == folded[1] if match == "any" else folded[1] in folded[0]


def searched(
    table: wb.neurons.NeuronTable, text: str | int, match: str, sign: int, keep: Any
) -> list[tuple[int, float, int]]:
    """Rank, minus score and row of every hit, best first: by a loop over all rows and ranks."""
    side, found = (0 if sign == 1 else 1), []
    for row in range(len(table)):
        for rank in range(table.top_k):
            token, score = int(table.tokens[side, row, rank]), float(table.scores[side, row, rank])
            right = token == text if isinstance(text, int) else matches(tiny.tokenizer().decode([token]), text, match)
            if right and keep(row, rank, score):
                found.append((rank, -score, row))
                break
    return sorted(found)


@pytest.fixture(scope="module")
def table(zoo, _tiny_cache) -> wb.neurons.NeuronTable:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(_tiny_cache))
        return wb.decode_neurons(zoo["llama"], "gate", 30)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("match", ["any", "exact", "contains"])
@pytest.mark.parametrize("text", ["dog", " dog", "Dog", "DOG ", "a", "A", " a", "t", "an", " T", "zzz", "ed", "é"])
def test_search_equals_a_loop(table: wb.neurons.NeuronTable, text: str, match: Any, sign: int) -> None:
    expected = searched(table, text, match, sign, lambda row, rank, score: True)
    hits = table.search(text, match=match, sign=sign, limit=None)
    assert [(hit.rank, table.row(hit.feature)) for hit in hits] == [(rank, row) for rank, _, row in expected]
    for hit, (rank, score, row) in zip(hits, expected, strict=True):
        assert hit.scores[rank] == pytest.approx(-score)
        assert matches(hit.tokens[rank], text, match)
        assert (hit.layer, hit.index) == divmod(row, 48)
        assert hit.sign == sign
        assert len(hit.tokens) == len(hit.scores) == 30
        assert hit.scores == sorted(hit.scores, reverse=True)


FILTERS: list[tuple[dict[str, Any], Any]] = [
    ({"layers": [1]}, lambda row, rank, score: row // 48 == 1),
    ({"layers": (0, 2)}, lambda row, rank, score: row // 48 != 1),
    ({"layers": []}, lambda row, rank, score: False),
    ({"max_rank": 0}, lambda row, rank, score: rank == 0),
    ({"max_rank": 5}, lambda row, rank, score: rank <= 5),
    ({"min_score": 2.5}, lambda row, rank, score: score >= 2.5),
    ({"min_score": 2.5, "max_rank": 9, "layers": [2, 1]}, lambda r, k, s: s >= 2.5 and k <= 9 and r // 48 > 0),
]


@pytest.mark.parametrize(("how", "keep"), FILTERS, ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_search_within_limits_equals_a_loop(table: wb.neurons.NeuronTable, how: dict[str, Any], keep: Any) -> None:
    for text in ("a", "t"):
        expected = searched(table, text, "contains", 1, keep)
        hits = table.search(text, match="contains", limit=None, **how)
        assert [(hit.rank, table.row(hit.feature)) for hit in hits] == [(rank, row) for rank, _, row in expected]


def test_search_by_token_id_and_limit(table: wb.neurons.NeuronTable) -> None:
    token = int(table.tokens[0, 50, 4])
    expected = [row for *_, row in searched(table, token, "", 1, lambda row, rank, score: True)]
    assert [table.row(hit.feature) for hit in table.search(token, limit=None)] == expected
    for limit in (1, 2, 1000):
        assert [table.row(hit.feature) for hit in table.search(token, limit=limit)] == expected[:limit]


def test_a_neuron_with_two_spellings_is_found_once(table: wb.neurons.NeuronTable) -> None:
    hits = table.search("a", match="contains", limit=None)
    assert len({hit.feature for hit in hits}) == len(hits)


# --- two models


def test_a_model_agrees_with_itself(table: wb.neurons.NeuronTable) -> None:
    same = wb.neurons.compare_decodings(table, table)
    assert (same.top_token, same.overlap, same.by_layer) == (1.0, 1.0, [1.0, 1.0, 1.0])


def test_agreement_equals_a_loop(zoo, tiny_cache, table: wb.neurons.NeuronTable) -> None:
    """The other model is this one with some neurons of layer 1 in each other's place, and weights a little moved."""
    module: Any = tiny.build("llama")
    with torch.no_grad():
        gate = module.model.layers[1].mlp.gate_proj.weight
        gate[:20] = gate[:20].flip(0).clone()
        module.model.layers[2].mlp.gate_proj.weight += 0.1 * torch.randn(
            48, 32, generator=torch.Generator().manual_seed(1)
        )
    other = wb.decode_neurons(wb.load_model(module, tokenizer=tiny.tokenizer()), "gate", 12)
    top, shared, layers = 0, 0.0, [0.0, 0.0, 0.0]
    for row in range(len(table)):
        mine, theirs = table.tokens[0, row].tolist()[:12], other.tokens[0, row].tolist()
        top += mine[0] == theirs[0]
        layers[row // 48] += (mine[0] == theirs[0]) / 48
        shared += len(set(mine) & set(theirs)) / 12
    for one, two in ((table, other), (other, table)):
        found = wb.neurons.compare_decodings(one, two)
        assert found.top_token == pytest.approx(top / len(table))
        assert found.overlap == pytest.approx(shared / len(table))
        assert found.by_layer == pytest.approx(layers)
    assert found.by_layer[0] == 1.0
    assert found.by_layer[1] <= 30 / 48
    assert json.loads(json.dumps(found.to_dict()))["by_layer"] == found.by_layer


# --- the table on disk


def test_the_table_is_kept_and_read_back(own_cache: Path) -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    told: list[float] = []
    first = wb.decode_neurons(model, "up", 5, progress=lambda share, what: told.append(share))
    assert told == sorted(told)
    assert len(told) == 3
    second = wb.decode_neurons(model, "up", 5, progress=lambda share, what: told.append(share))
    assert len(told) == 3, "it was decoded again"
    assert (first.tokens == second.tokens).all()
    assert (first.scores == second.scores).all()
    assert (first.excess == second.excess).all()
    for other in ({"weights": "gate"}, {"top_k": 6}, {"scale": "unit"}):
        wb.decode_neurons(model, **({"weights": "up", "top_k": 5} | other))
    assert len(list((own_cache / "decodings").iterdir())) == 4, "one file for each setting, and none beside them"


def damaged_files(file: Path, other: Path) -> dict[str, Any]:
    """Ways in which a table on disk can go wrong."""
    whole = file.read_bytes()
    with safe_open(file, "pt") as opened:
        about = opened.metadata()["about"]
        tensors = {name: opened.get_tensor(name) for name in ("tokens", "scores", "excess")}

    def swapped() -> None:
        save_file(tensors | {"tokens": tensors["tokens"].flip(1).contiguous()}, file, metadata={"about": about})

    def version() -> None:
        save_file(tensors, file, metadata={"about": json.dumps(json.loads(about) | {"format": 99})})

    return {
        "a flipped byte": lambda: file.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]),
        "cut off": lambda: file.write_bytes(whole[: len(whole) // 2]),
        "empty": lambda: file.write_bytes(b""),
        "not a table": lambda: file.write_bytes(b"\x10" + b"\0" * 7 + b"{" * 300),
        "other tokens": swapped,
        "another version": version,
        "no metadata": lambda: save_file(tensors, file),
        "another model's": lambda: shutil.copy(other, file),
    }


def test_an_altered_table_is_made_anew_and_not_trusted(own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = [wb.load_model(tiny.build("llama", seed), tokenizer=tiny.tokenizer()) for seed in (0, 1)]
    right, _ = (wb.decode_neurons(model, "up", 5) for model in models)
    places = [(own_cache / "decodings").glob(f"{model.hash}-up-raw-5.safetensors") for model in models]
    (file,), (other,) = places
    for what, damage in damaged_files(file, other).items():
        damage()
        caplog.clear()
        found = wb.decode_neurons(models[0], "up", 5)
        assert (found.tokens == right.tokens).all(), what
        assert (found.scores == right.scores).all(), what
        assert str(file) in caplog.text, what
        assert "decoding anew" in caplog.text, what
        caplog.clear()
        wb.decode_neurons(models[0], "up", 5)
        assert caplog.text == "", what


# --- the default model


@pytest.mark.real
def test_the_dog_neuron(model) -> None:
    table = wb.decode_neurons(model, "gate", 10)
    assert len(table) == 46_080
    hit = table.search(" dog")[0]
    assert str(hit.feature) == "neurons.29.gate:808"
    assert (hit.layer, hit.index, hit.rank) == (29, 808, 0)
    assert hit.tokens[:3] == [" dog", "dog", " cat"]
    scores = (
        model.network.module.get_output_embeddings().weight.detach()
        @ model.network.module.model.layers[29].mlp.gate_proj.weight[808]
    )
    assert hit.scores == pytest.approx(scores.topk(10).values.tolist(), abs=1e-4)
    assert str(table.search(" dog", match="exact")[0].feature) == "neurons.29.gate:808"
    assert [(hit.index, hit.rank) for hit in table.search("dog", match="exact")] == [(808, 1)]
    assert {str(one.feature) for one in table.search("DOG")} >= {"neurons.29.gate:808"}


@pytest.mark.real
def test_a_sample_of_the_default_models_table_against_loops(model) -> None:
    table = wb.decode_neurons(model, "gate", 10)
    head = model.network.module.get_output_embeddings().weight.detach()
    for row in range(0, len(table), 3989):
        vector = model.network.module.model.layers[row // 1536].mlp.gate_proj.weight[row % 1536]
        for side, sign in ((0, 1), (1, -1)):
            best = (head @ vector * sign).topk(10)
            assert table.scores[side, row].tolist() == pytest.approx(best.values.tolist(), abs=1e-4)
            assert len(set(table.tokens[side, row].tolist()) & set(best.indices.tolist())) >= 9


def test_without_a_gate_the_default_is_up(zoo) -> None:
    assert wb.decode_neurons(zoo["gpt2"], top_k=2).weights == "up"
    assert wb.decode_neurons(zoo["llama"], top_k=2).weights == "gate"

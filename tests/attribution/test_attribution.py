"""Attribution graphs: complete sums, exact derivatives, hand-made circuits, what interventions do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transcoders import coder, coders

import workbench as wb
from workbench.attribution.attribute import attribute
from workbench.attribution.frozen import AttributionError
from workbench.attribution.graph import Graph
from workbench.attribution.graph_json import from_json, load_graph, save_graph, to_json, to_neuronpedia
from workbench.attribution.verification import verify_graph

PROMPT = torch.tensor([5, 17, 40, 8, 99, 200, 31])
SKIPPED = (wb.dictionaries.TopKSkipTranscoder, wb.dictionaries.JumpReLUSkipTranscoder)


def norms(module: nn.Module) -> list[nn.Module]:
    """All norms of a plain model."""
    return [one for path, one in module.named_modules() if "norm" in path.rsplit(".", 1)[-1] or ".ln_" in f".{path}"]


# ---- completeness


@pytest.mark.parametrize("mlps", ["frozen", "linear"])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_sums_are_complete(zoo: Any, name: str, mlps: Any) -> None:
    model = zoo[name]
    layers = [0, *range(2, model.network.n_layers)]  # one layer without a transcoder
    graph = attribute(model, coders(model, layers=layers), PROMPT, target=7, mlps=mlps, first=1)
    logits = model(PROMPT[None])[0, -1]
    assert graph.target.value == pytest.approx(float(logits[7] - logits.mean()), rel=1e-4, abs=1e-5)
    assert float(graph.weights[0].sum()) == pytest.approx(graph.target.value, rel=1e-3, abs=1e-4)
    for row, total in zip(graph.weights, graph.totals, strict=True):
        assert float(row.sum()) == pytest.approx(total, rel=1e-3, abs=1e-4)
    assert len(graph.rows) > 5
    assert sum(graph.shares.values()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    "kind", [wb.dictionaries.Transcoder, wb.dictionaries.JumpReLUTranscoder, wb.dictionaries.TopKTranscoder, *SKIPPED]
)
def test_totals_are_activations(llama: wb.model.LanguageModel, kind: Any) -> None:
    mine = coders(llama, kind)
    graph = attribute(llama, mine, PROMPT, target=(3, 11), first=0)
    read = llama.capture(PROMPT, [one.reads for one in mine])
    for id, row, total in zip(graph.rows[1:], graph.weights[1:], graph.totals[1:], strict=True):
        node = graph.node(id)
        value = mine[node.layer].encode(read[mine[node.layer].reads][0, node.position]).value_of(node.feature.index)
        assert node.value == pytest.approx(float(value), rel=1e-4)
        assert total == pytest.approx(node.value, rel=1e-4)
        assert float(row.sum()) == pytest.approx(node.value, rel=1e-3, abs=1e-4)
    logits = llama(PROMPT[None])[0, -1]
    assert graph.target.value == pytest.approx(float(logits[3] - logits[11]), rel=1e-4)


def test_no_source_comes_after_what_reads_it(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, coders(llama), PROMPT, target=7, position=4)
    for row, id in enumerate(graph.rows):
        reader = graph.node(id)
        for column in graph.weights[row].nonzero()[:, 0].tolist():
            source = graph.nodes[column]
            assert source.layer < reader.layer
            assert source.position <= reader.position <= 4


# ---- against autograd and derivatives


def detached(module: nn.Module, prompt: Tensor, skip: dict[int, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
    """A plain llama's logits with norm scales, patterns and MLPs detached, and leaves at each MLP's output (-1: input).

    MLPs pass gradients along `skip` only. Nothing here uses Workbench.
    """
    leaves: dict[int, Tensor] = {}
    handles = []

    def norm(one: Any) -> None:
        def hook(_m: nn.Module, args: tuple, out: Tensor) -> Tensor:
            x = args[0]
            scale = torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + one.variance_epsilon)
            return x * scale * one.weight

        handles.append(one.register_forward_hook(hook))

    def frozen(layer: int, mlp: nn.Module) -> None:
        def hook(_m: nn.Module, args: tuple, out: Tensor) -> Tensor:
            leaves[layer] = torch.zeros_like(out).requires_grad_()
            x = args[0]
            linear = (x - x.detach()) @ skip[layer].T if layer in skip else 0
            return out.detach() + leaves[layer] + linear

        handles.append(mlp.register_forward_hook(hook))

    for path, part in module.named_modules():
        if path.endswith("norm"):
            norm(part)
        if path.endswith(("q_proj", "k_proj")):
            handles.append(part.register_forward_hook(lambda m, args, out: out.detach()))
        if path.endswith("embed_tokens"):

            def embed(_m: nn.Module, args: tuple, out: Tensor) -> Tensor:
                leaves[-1] = torch.zeros_like(out).requires_grad_()
                return out.detach() + leaves[-1]

            handles.append(part.register_forward_hook(embed))
    for layer, block in enumerate(module.model.layers):  # type: ignore[attr-defined]
        frozen(layer, block.mlp)
    try:
        return leaves, module(input_ids=prompt[None], use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def test_weights_are_those_of_autograd(llama: wb.model.LanguageModel) -> None:
    mine = coders(llama, wb.dictionaries.TopKSkipTranscoder)
    graph = attribute(llama, mine, PROMPT, target=7, mlps="frozen", first=0)
    plain = tiny.build("llama")
    leaves, logits = detached(plain, PROMPT, {layer: one.W_skip for layer, one in enumerate(mine)})
    value = logits[-1, 7] - logits[-1].mean()
    gradients = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    checked = 0
    for node, weight in zip(graph.nodes, graph.weights[0].tolist(), strict=True):
        if node.kind == "latent":
            made = node.value * float(
                mine[node.layer].W_dec[node.feature.index] @ gradients[node.layer][0, node.position]
            )
            assert weight == pytest.approx(made, rel=1e-3, abs=1e-5)
            checked += 1
        if node.kind == "embedding":
            vector = plain.model.embed_tokens.weight.detach()[PROMPT[node.position]]
            assert weight == pytest.approx(float(vector @ gradients[-1][0, node.position]), rel=1e-3, abs=1e-5)
    assert checked > 50


def test_free_effects_are_gradients_of_the_plain_model(llama: wb.model.LanguageModel) -> None:
    mine = coders(llama)
    graph = attribute(llama, mine, PROMPT, target=7, first=0)
    plain, leaves = tiny.build("llama"), {}

    def leaf(layer: int) -> Any:
        def hook(_m: nn.Module, args: tuple, out: Tensor) -> Tensor:
            leaves[layer] = torch.zeros_like(out).requires_grad_()
            return out + leaves[layer]

        return hook

    for layer, block in enumerate(plain.model.layers):
        block.mlp.register_forward_hook(leaf(layer))
    logits = plain(input_ids=PROMPT[None], use_cache=False).logits[0, -1]
    gradients = torch.autograd.grad(logits[7] - logits.mean(), [leaves[layer] for layer in range(3)])
    for node in graph.nodes:
        if node.kind == "latent":
            slope = float(mine[node.layer].W_dec[node.feature.index] @ gradients[node.layer][0, node.position])
            assert node.gradient_effect == pytest.approx(node.value * slope, rel=1e-3, abs=1e-5)


def linear_model() -> wb.model.LanguageModel:
    """A tiny llama without attention and norms that divide: a linear map from what MLPs write to the logits.

    Norm scales depend on their input, but not their derivative along what is orthogonal to it; so the embedding has one
    huge constant coordinate, which the scale is made of and nothing else reads.
    """
    module = tiny.build("llama")
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
            for part in (block.mlp.gate_proj, block.mlp.up_proj):
                part.weight[:, 0] = 0
            block.mlp.down_proj.weight[0] = 0
        module.model.embed_tokens.weight[:, 0] = 1e5
        module.config.tie_word_embeddings = False
        head = nn.Linear(32, tiny.VOCAB, bias=False)
        head.weight.copy_(1e3 * torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3)))
        head.weight[:, 0] = 0
        module.lm_head = head
        for one in norms(module):
            one.weight[0] = 1.0
    return wb.load_model(module, tokenizer=tiny.tokenizer())


def test_on_a_linear_model_attributions_are_derivatives(tiny_cache: Path) -> None:
    model = linear_model()
    last = model.network.n_layers - 1
    (mine,) = coders(model, layers=[last])
    mine.W_dec[:, 0] = 0
    graph = attribute(model, [mine], PROMPT, target=(7, 9), first=0)
    for node in [one for one in graph.nodes if one.kind == "latent" and one.position == len(PROMPT) - 1]:
        values = []
        for factor in (0.0, 2.0):
            edit = wb.Scale(node.feature, factor, positions=[node.position])
            with model.intervening([edit]):
                logits = model(PROMPT[None])[0, -1].double()
            values.append(float(logits[7] - logits[9]))
        assert node.effect == pytest.approx((values[1] - values[0]) / 2, rel=2e-3, abs=1e-4)
        assert node.gradient_effect == pytest.approx(node.effect, rel=1e-3, abs=1e-4)


# ---- a circuit made by hand


def handmade() -> tuple[wb.model.LanguageModel, list[Any]]:
    """Two blocks without attention; latent 3 of layer 0 reads the token, latent 5 of layer 1 reads latent 3."""
    module = tiny.build("llama", num_hidden_layers=2)
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        for one in norms(module):
            one.weight.fill_(1.0)
        module.model.embed_tokens.weight.zero_()
        module.model.embed_tokens.weight[:, 0] = 1.0
        module.model.embed_tokens.weight[17, 1] = 2.0
    model = wb.load_model(module, tokenizer=tiny.tokenizer())
    mine = [coder(layer, k=2) for layer in (0, 1)]
    for one in mine:
        for tensor in (one.W_enc_T, one.W_dec, one.b_enc, one.b_dec):
            tensor.zero_()
    mine[0].W_enc_T[3, 1] = 1.0
    mine[0].W_dec[3, 2] = 4.0
    mine[1].W_enc_T[5, 1] = 0.5
    mine[1].W_enc_T[5, 2] = 0.25
    return model, mine


def test_a_circuit_made_by_hand(tiny_cache: Path) -> None:
    model, mine = handmade()
    scale = 1 / math.sqrt((1 + 4) / 32 + 1e-6)  # of a stream with 1 and 2 in it
    graph = attribute(model, mine, torch.tensor([5, 17]), target=(mine[1].feature(5), 1), first=0)
    first = next(node for node in graph.nodes if str(node.feature) == "t0:3" and node.position == 1)
    assert first.value == pytest.approx(2 * scale, rel=1e-4)
    (edge,) = [edge for edge in graph.edges_of(0) if edge.source == first.id]
    # its decoder row meets the encoder row in one coordinate: 4 * 0.25; the MLP itself writes nothing, so the error
    # takes away what the latent adds
    assert edge.invariant == pytest.approx(1.0)
    assert edge.scale == pytest.approx(scale, rel=1e-4)
    assert edge.factor == pytest.approx(scale, rel=1e-4)
    assert edge.weight == pytest.approx(2 * scale * scale, rel=1e-4)
    weights = {graph.nodes[column].kind: float(graph.weights[0, column]) for column in graph.weights[0].nonzero()[:, 0]}
    assert weights["error"] == pytest.approx(-edge.weight, rel=1e-4)
    assert weights["embedding"] == pytest.approx(0.5 * 2 * scale, rel=1e-4)
    assert graph.target.value == pytest.approx(scale, rel=1e-4)
    embedding = next(node for node in graph.nodes if node.kind == "embedding" and node.position == 1)
    inner = {edge.source: edge.weight for edge in graph.edges_of(first.id)}
    assert inner == {embedding.id: pytest.approx(2 * scale, rel=1e-4)}


# ---- choosing and pruning


def test_all_latents_are_traced_where_that_is_allowed(llama: wb.model.LanguageModel) -> None:
    whole = attribute(llama, coders(llama), PROMPT, target=7, max_latents=10_000)
    few = attribute(llama, coders(llama), PROMPT, target=7, max_latents=4, batch=2)
    assert len(few.rows) == 5
    assert set(few.rows) <= {node.id for node in whole.nodes}
    for id in few.rows:
        theirs = whole.weights[whole.rows.index(id)]
        assert torch.allclose(few.weights[few.rows.index(id)], theirs, rtol=1e-4, atol=1e-5)


def test_influence_and_effect_are_sums_over_paths(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, coders(llama), PROMPT, target=7, max_latents=30)
    row_of = {id: row for row, id in enumerate(graph.rows)}
    normed = graph.weights.abs() / graph.weights.abs().sum(1, keepdim=True)

    def walk(id: int, share: float, slope: float, into: dict[int, list[float]]) -> None:
        for column in graph.weights[row_of[id]].nonzero()[:, 0].tolist():
            node = graph.nodes[column]
            part = share * float(normed[row_of[id], column])
            slant = slope * float(graph.weights[row_of[id], column]) / node.value
            found = into.setdefault(column, [0.0, 0.0])
            found[0] += part
            found[1] += slant * node.value
            if column in row_of:
                walk(column, part, slant, into)

    found: dict[int, list[float]] = {}
    walk(0, 1.0, 1.0, found)
    for column, (share, effect) in found.items():
        assert graph.nodes[column].influence == pytest.approx(share, rel=1e-3, abs=1e-6)
        assert graph.nodes[column].effect == pytest.approx(effect, rel=1e-3, abs=1e-5)


def test_pruning_keeps_the_share_asked_for(llama: wb.model.LanguageModel) -> None:
    whole = attribute(llama, coders(llama), PROMPT, target=7)
    total = sum(node.influence for node in whole.nodes[1:])
    assert whole.prune(1.0, 1.0).edges == whole.edges
    for share in (0.9, 0.6, 0.3):
        small = whole.prune(share, 1.0)
        assert sum(node.influence for node in small.nodes[1:]) <= total
        assert len(small) < len(whole)
        kept = sorted((node.influence for node in whole.nodes[1:]), reverse=True)
        least = next(n for n in range(1, len(kept)) if sum(kept[:n]) >= share * total)
        assert len(small.nodes) <= least + 1
        sources = {edge.source for edge in small.edges}
        assert {node.id for node in small.nodes} == sources | {0}  # each has a way to the target
        assert set(small.rows) >= {edge.target for edge in small.edges}
        for edge in small.edges:
            assert edge.weight == float(whole.weights[whole.rows.index(edge.target), edge.source])
    stranger = min(whole.nodes[2:], key=lambda node: node.influence)
    assert stranger in whole.prune(0.3, keep=(stranger.id,)).nodes
    latents = whole.prune(0.5, 1.0, kinds=["latent"])
    assert {node.kind for node in latents.nodes} == {"target", "latent"}
    sizes = sorted((node.influence for node in whole.nodes if node.kind == "latent"), reverse=True)
    least = next(n for n in range(1, len(sizes)) if sum(sizes[:n]) >= 0.5 * sum(sizes))
    assert len(latents) <= least + 1
    with pytest.raises(AttributionError, match="share"):
        whole.prune(0)
    with pytest.raises(AttributionError, match="kind"):
        whole.prune(0.5, kinds=["edge"])


def test_tracing_can_be_stopped(llama: wb.model.LanguageModel) -> None:
    told: list[float] = []
    graph = attribute(
        llama, coders(llama), PROMPT, 7, batch=2, progress=lambda s, _: told.append(s), cancel=lambda: len(told) > 2
    )
    assert len(graph.rows) == 5
    assert told == sorted(told)


# ---- interventions


def test_frozen_regimes_are_what_the_graph_says(zoo: Any) -> None:
    for name in ("llama", "gpt2", "neox"):
        model = zoo[name]
        for mlps in ("frozen", "linear"):
            mine = coders(model, wb.dictionaries.SkipTranscoder, layers=[0])
            graph = attribute(model, mine, PROMPT, target=7, mlps=mlps)  # type: ignore[arg-type]
            found = verify_graph(model, mine, graph, 8, factor=0.5, regimes=["direct", "latents"])
            # there is no later latent, so both are the edge to the target
            for regime in ("direct", "latents"):
                assert found.measured[regime] == pytest.approx(found.predicted[regime], rel=5e-3, abs=1e-4)


def test_later_latents_respond_by_their_edges(llama: wb.model.LanguageModel) -> None:
    mine = coders(llama, wb.dictionaries.Transcoder)
    graph = attribute(llama, mine, PROMPT, target=7, max_latents=10_000, rest=0.0)
    found = verify_graph(llama, mine, graph, 8, factor=1 - 1e-2, regimes=["latents", "direct"])
    # a small change switches no latent on or off
    assert found.measured["latents"] == pytest.approx(found.predicted["latents"], rel=2e-2, abs=2e-5)
    assert found.predicted["direct"] != pytest.approx(found.predicted["latents"], rel=2e-2, abs=2e-5)


def test_free_is_the_intervention_in_the_plain_model(llama: wb.model.LanguageModel) -> None:
    mine = coders(llama)
    graph = attribute(llama, mine, PROMPT, target=(3, 11))
    found = verify_graph(llama, mine, graph, 6, regimes=["free"])
    for id, change in zip(found.nodes, found.measured["free"], strict=True):
        node = graph.node(id)
        with llama.intervening([wb.Ablate(node.feature, positions=[node.position])]):
            logits = llama(PROMPT[None])[0, -1]
        assert change == pytest.approx(float(logits[3] - logits[11]) - graph.target.value, rel=1e-3, abs=1e-4)
    assert math.isnan(verify_graph(llama, mine, graph, 2, regimes=["free"]).pearson["free"])


# ---- JSON


def test_a_graph_comes_back_from_json(llama: wb.model.LanguageModel, tmp_path: Path) -> None:
    graph = attribute(llama, coders(llama), "The dog ran", target="a").prune(0.7)
    save_graph(graph, tmp_path / "graph.json")
    back = load_graph(tmp_path / "graph.json")
    made = coders(llama)
    assert verify_graph(llama, made, back, 3).measured == verify_graph(llama, made, graph, 3).measured
    assert isinstance(back, Graph)
    assert back.nodes == graph.nodes
    assert back.edges == graph.edges
    assert (back.prompt, back.tokens, back.rows, back.made) == (graph.prompt, graph.tokens, graph.rows, graph.made)
    assert json.loads(to_json(back)) == json.loads(to_json(graph))
    for text in ("{", "[]", '{"format": 99}', '{"format": 1}'):
        with pytest.raises(AttributionError, match="graph"):
            from_json(text)
    with pytest.raises(AttributionError, match="can't be read"):
        load_graph(tmp_path / "none.json")


def test_neuronpedias_form(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, coders(llama), PROMPT, target=7).prune(0.7)
    latent = next(node for node in graph.nodes if node.kind == "latent")
    said = json.loads(json.dumps(to_neuronpedia(graph, "tiny", pinned=[latent.id])))
    names = [node["node_id"] for node in said["nodes"]]
    assert len(set(names)) == len(names) == sum(node.kind != "bias" for node in graph.nodes)
    assert {link["source"] for link in said["links"]} | {link["target"] for link in said["links"]} <= set(names)
    pinned = f"{latent.layer}_{latent.feature.index}_{latent.position}"
    assert said["qParams"]["pinnedIds"] == [pinned]
    node = said["nodes"][names.index(pinned)]
    assert (node["layer"], node["ctx_idx"]) == (str(latent.layer), latent.position)
    assert said["metadata"]["prompt_tokens"] == graph.prompt


# ---- bad input


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"target": "two words here"}, "tokens for this model"),
        ({"target": ""}, "0 tokens"),
        ({"target": 1_000_000}, "token's text or its id"),
        ({"target": (7, 7)}, "same"),
        ({"target": (1, 2, 3)}, "two tokens"),
        ({"target": 7, "position": 7}, "positions 0 to 6"),
        ({"target": 7, "max_latents": -1}, "max_latents"),
        ({"target": 7, "mlps": "loose"}, "mlps"),
        ({"target": 7, "batch": 0}, "batch"),
        ({"target": 7, "rest": 1.0}, "rest"),
        ({"target": (wb.Feature("other", 3), 2)}, "not a latent of the transcoders"),
        ({"target": 7, "transcoders": "t0"}, "list"),
        ({"target": 7, "transcoders": [3]}, "not a transcoder"),
        ({"target": 7, "transcoders": [wb.TopKSAE(32, 8, k=2, hook_point="blocks.1.hook_mlp_out")]}, "nowhere|reads"),
        ({"target": 7, "transcoders": [wb.Codebook(32, 8)]}, "not a transcoder"),
    ],
)
def test_bad_input(llama: wb.model.LanguageModel, how: dict[str, Any], word: str) -> None:
    how = {"transcoders": coders(llama)} | how
    with pytest.raises(AttributionError, match=word) as caught:
        attribute(llama, how.pop("transcoders"), PROMPT, **how)
    assert "\n" not in str(caught.value)


def test_more_bad_input(llama: wb.model.LanguageModel) -> None:
    with pytest.raises(wb.model.PromptError, match="empty"):
        attribute(llama, coders(llama), "")
    with pytest.raises(AttributionError, match="both of layer"):
        attribute(llama, [coder(1, k=2), coder(1, k=3)], PROMPT)
    with pytest.raises(AttributionError, match="wide"):
        attribute(llama, [coder(1, d_model=16, k=2)], PROMPT)
    graph = attribute(llama, coders(llama), PROMPT, 7)
    with pytest.raises(AttributionError, match="other transcoders"):
        verify_graph(llama, coders(llama)[:2], graph)
    with pytest.raises(AttributionError, match="regime"):
        verify_graph(llama, coders(llama), graph, regimes=["some"])  # type: ignore[list-item]
    with pytest.raises(AttributionError, match="not a latent of this graph"):
        verify_graph(llama, coders(llama), graph, [0])
    for nodes in (0, -1, True, 2.5):
        with pytest.raises(AttributionError, match="nodes is"):
            verify_graph(llama, coders(llama), graph, nodes)  # type: ignore[arg-type]
    for factor in (1.0, float("nan"), "0"):
        with pytest.raises(AttributionError, match="factor is"):
            verify_graph(llama, coders(llama), graph, factor=factor)  # type: ignore[arg-type]


def test_without_transcoders_everything_is_an_mlp(llama: wb.model.LanguageModel) -> None:
    graph = attribute(llama, [], PROMPT)
    assert {node.kind for node in graph.nodes} == {"target", "bias", "embedding", "mlp"}
    assert graph.completeness()[0] < 1e-3
    assert graph.made["target_tokens"] == [int(llama(PROMPT[None])[0, -1].argmax())]


# ---- de-embeddings


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_deembeddings_are_products_of_weights(zoo: Any, name: str) -> None:
    """Against one token fed through the plain modules, without their biases and scales."""
    model = zoo[name]
    layer = model.network.n_layers - 1
    (mine,) = coders(model, layers=[layer])
    found = wb.attribution.deembed(model, mine, 7, top=5, heads=3)
    network = model.network
    table = network.module.get_input_embeddings().weight.detach()

    def normed(point: str, x: Tensor) -> Tensor:
        gain, _, centres = network.norm_weights(point)
        return (x - x.mean(-1, keepdim=True) if centres else x) * gain

    direct = normed(f"blocks.{layer}.ln2.hook_out", table) @ mine.W_enc[:, 7]
    best = direct.topk(5)
    assert found.drives.ids == best.indices.tolist()
    assert found.drives.scores == pytest.approx(best.values.tolist(), rel=1e-4)
    assert found.opposes.ids == (-direct).topk(5).indices.tolist()
    assert found.opposes.scores == sorted(found.opposes.scores)
    spreads = {}
    for below in range(layer + (name != "neox")):
        value, _, out, _ = network.attention_weights(below)
        x = normed(f"blocks.{below}.ln1.hook_out", table)
        for head in range(len(out)):
            written = x @ value[head * len(value) // len(out)] @ out[head]
            scores = normed(f"blocks.{layer}.ln2.hook_out", written) @ mine.W_enc[:, 7]
            spreads[below, head] = scores
    order = sorted(spreads, key=lambda place: -float(spreads[place].std()))
    assert [(one.layer, one.head) for one in found.heads] == order[:3]
    for one in found.heads:
        scores = spreads[one.layer, one.head]
        assert one.strength == pytest.approx(float(scores.std()), rel=1e-3)
        assert one.drives.ids == scores.topk(5).indices.tolist()
    gain, centres = network.final_norm()
    row = mine.W_dec[7]
    logits = network.unembedding() @ ((row - row.mean() if centres else row) * gain)
    assert found.promotes.ids == logits.topk(5).indices.tolist()
    assert found.promotes.scores == pytest.approx((logits - logits.mean()).topk(5).values.tolist(), rel=1e-4)
    json.dumps(found.to_dict())
    with pytest.raises(wb.dictionaries.FeatureError):
        wb.attribution.deembed(model, mine, 24)
    for wrong in ({"top": -1}, {"top": 2.5}, {"heads": -1}, {"heads": 1.5}):
        with pytest.raises(ValueError, match="is a whole number from"):
            wb.attribution.deembed(model, mine, 7, **wrong)

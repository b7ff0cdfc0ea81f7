"""Graphs of cross-layer transcoders: complete sums, edges as brute-force interventions in a plain model."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from attribution_models import PROMPT, coder
from torch import Tensor, nn

import workbench as wb
from workbench.attribution import AttributionError, attribute, deembed, verify_graph
from workbench.dictionaries import CrossLayerTranscoder


def clt(model: Any, reads: str = "mlp.hook_in", layers: Any = None, **how: Any) -> CrossLayerTranscoder:
    """A cross-layer transcoder with random weights."""
    at = list(range(model.network.n_layers)) if layers is None else layers
    places: Any = {
        "reads": " + ".join(f"blocks.{n}.{reads}" for n in at),
        "writes": " + ".join(f"blocks.{n}.hook_mlp_out" for n in at),
    }
    made = CrossLayerTranscoder(32 * len(at), 16 * len(at), layers=len(at), name="clt", **places, **how)
    chance = torch.Generator().manual_seed(3)
    for name, tensor in made.state_dict().items():
        noise = torch.randn(tensor.shape, generator=chance)
        size = {"W_enc_T": 0.5, "W_dec": 0.3, "W_skip": 0.2}.get(name.split(".")[0], 0.1)
        tensor.copy_(0.2 * noise.abs() if "threshold" in name else size * noise)
    return made


@pytest.mark.parametrize(
    ("name", "reads", "how", "layers"),
    [
        ("llama", "mlp.hook_in", {}, None),
        ("llama", "hook_resid_mid", {"skip": True}, None),
        ("gpt2", "hook_resid_mid", {}, None),
        ("llama", "mlp.hook_in", {"skip": True}, [0, 2]),
    ],
)
def test_sums_are_complete(zoo: Any, name: str, reads: str, how: Any, layers: Any) -> None:
    model = zoo[name]
    mine = clt(model, reads, layers, **how)
    graph = attribute(model, [mine], PROMPT, target=7)
    logits = model(PROMPT[None])[0, -1]
    assert graph.target.value == pytest.approx(float(logits[7] - logits.mean()), rel=1e-4, abs=1e-5)
    read = torch.cat(list(model.capture(PROMPT, mine.read_points).values()), -1)[0]
    assert len(graph.rows) > 5
    for id, row, total in zip(graph.rows, graph.weights, graph.totals, strict=True):
        assert float(row.sum()) == pytest.approx(total, rel=1e-3, abs=1e-4)
        if (feature := graph.node(id).feature) is not None:
            value = float(mine.encode(read).value_of(feature.index)[graph.node(id).position])
            assert total == pytest.approx(value, rel=1e-3, abs=1e-4)
    kinds = {(node.kind, node.layer) for node in graph.nodes}
    assert kinds >= {("error", layer) for layer in layers or range(model.network.n_layers)}


class Held:
    """A plain llama with norm scales, queries and keys of a first run, and its MLP outputs plus changes."""

    def __init__(self, module: Any):
        self.module, self.kept = module, {}

    def logits(self, changes: dict[int, Tensor] | None) -> Tensor:
        """Of the last position; the first call, without changes, is the run that is held."""
        handles, first = [], changes is None

        def hold(name: str, change: Tensor | None = None) -> Any:
            def hook(part: Any, args: tuple, out: Tensor) -> Tensor:
                if name.endswith("norm"):
                    if first:
                        self.kept[name] = torch.rsqrt(args[0].square().mean(-1, keepdim=True) + part.variance_epsilon)
                    return args[0] * self.kept[name] * part.weight
                if first:
                    self.kept[name] = out
                return self.kept[name] if change is None else self.kept[name] + change

            return hook

        for name, part in self.module.named_modules():
            if name.endswith(("norm", "q_proj", "k_proj", "mlp")):
                layer = int(name.split(".")[2]) if name.endswith("mlp") else -1
                handles.append(part.register_forward_hook(hold(name, (changes or {}).get(layer))))
        try:
            with torch.no_grad():
                return self.module(input_ids=PROMPT[None], use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()


def test_an_edge_is_what_taking_the_latent_out_of_every_layer_changes(zoo: Any) -> None:
    model = zoo["llama"]
    mine = clt(model)
    graph = attribute(model, [mine], PROMPT, target=(7, 30), mlps="frozen")
    held = Held(tiny.build("llama"))
    bare = held.logits(None)
    checked = 0
    for node, weight in zip(graph.nodes, graph.weights[0].tolist(), strict=True):
        if node.kind != "latent":
            continue
        assert node.feature is not None
        layer, latent = divmod(node.feature.index, 16)
        assert layer == node.layer
        changes = {}
        for at in range(layer, 3):
            changes[at] = torch.zeros(1, len(PROMPT), 32)
            changes[at][0, node.position] = -node.value * mine.W_dec[layer][latent, at - layer]
        difference = held.logits(changes) - bare
        assert weight == pytest.approx(-float(difference[7] - difference[30]), rel=2e-3, abs=2e-5)
        checked += 1
    assert checked > 50
    scale = graph.scales[0]
    early = [n for n, node in enumerate(graph.nodes) if node.kind == "latent" and node.position == len(PROMPT) - 1]
    gain = tiny.build("llama").model.norm.weight.detach()
    head = tiny.build("llama").lm_head.weight.detach()
    for column in early:
        feature = graph.nodes[column].feature
        assert feature is not None
        whole = mine.direction(feature.index).view(3, 32).sum(0)
        invariant = float(whole @ (gain * (head[7] - head[30])))
        assert float(graph.invariants[0, column]) == pytest.approx(invariant, rel=1e-3, abs=1e-4)
    assert scale > 0


def test_the_regimes_are_what_the_graph_says(zoo: Any) -> None:
    model = zoo["llama"]
    mine = clt(model, skip=True)
    graph = attribute(model, [mine], PROMPT, target=7, max_latents=10_000, rest=0.0)
    found = verify_graph(model, [mine], graph, 8, factor=1 - 1e-2)
    for regime in ("direct", "latents"):
        assert found.measured[regime] == pytest.approx(found.predicted[regime], rel=2e-2, abs=5e-5)
    for id, change in zip(found.nodes, found.measured["free"], strict=True):
        node = graph.node(id)
        with model.intervening([wb.Scale(node.feature, 1 - 1e-2, positions=[node.position])]):
            logits = model(PROMPT[None])[0, -1]
        assert change == pytest.approx(float(logits[7] - logits.mean()) - graph.target.value, rel=1e-3, abs=1e-5)


def test_a_latent_as_the_target_and_what_is_refused(zoo: Any) -> None:
    model = zoo["llama"]
    mine = clt(model, "hook_resid_mid")
    x = model.capture(PROMPT, [mine.read_points[2]])[mine.read_points[2]][0, -1]
    graph = attribute(model, [mine], PROMPT, target=mine.feature(2 * 16 + 5))
    pre = float(x @ mine.W_enc_T[2][5] + mine.b_enc[2][5])
    assert graph.target.value == pytest.approx(pre, rel=1e-4, abs=1e-5)
    assert float(graph.weights[0].sum()) == pytest.approx(pre, rel=1e-3, abs=1e-4)
    with pytest.raises(AttributionError, match="clt and t1 are both of layer 1"):
        attribute(model, [mine, coder(1, k=4)], PROMPT)
    swapped = clt(model, layers=[1, 0])
    with pytest.raises(AttributionError, match="ascending order"):
        attribute(model, [swapped], PROMPT)
    found = deembed(model, clt(model), 20, heads=0)
    direction = clt(model).direction(20).view(3, 32).sum(0)
    module: nn.Module = tiny.build("llama")
    scores = (direction * module.model.norm.weight) @ module.lm_head.weight.T  # type: ignore[union-attr, operator]
    assert found.promotes.ids[0] == int(scores.argmax())

"""What Workbench can do with a model, each held against plain transformers: the columns of docs/models.md.

A capability takes a `Subject` and returns when all is right. A refusal raises a `WorkbenchError`; a wrong answer raises
`AssertionError`, anything else is a fault as well. The truth is a second copy of the plain model with hooks of these
tests, or arithmetic; places are found by shape, never by Workbench.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
import zoo
from neuron_capabilities import deembeds, reads_neurons
from subjects import CLOSE, TOKENS, Subject, random_transcoders, same, sizes
from torch import Tensor, nn

import workbench as wb


def opens(one: Subject) -> None:
    """Logits are those of plain transformers."""
    same(one.model(TOKENS), one.logits(), "logits")


def generates(one: Subject) -> None:
    """Greedy writing with the cache is that of full passes without one."""
    tokens = TOKENS[:, :5]
    ids, best = tokens, []
    for _ in range(12):
        last = one.logits(ids)[0, -1].log_softmax(-1)
        best.append(float(last.max()))
        ids = torch.cat([ids, last.argmax().view(1, 1)], 1)
    written = one.model.generate(tokens, max_new_tokens=12, stop=False)
    assert list(written.tokens) == ids[0, 5:].tolist(), "other tokens"
    same(torch.as_tensor(written.logprobs), torch.tensor(best), "log-probabilities")


def captures(one: Subject) -> None:
    """The stream before and after each block, and what enters the down projection, are those of plain hooks."""
    points = [f"blocks.{layer}.hook_resid_{side}" for layer in range(len(one.layers)) for side in ("pre", "post")]
    found = one.model.capture(TOKENS, points)
    for layer, block in enumerate(one.layers):
        same(found[f"blocks.{layer}.hook_resid_pre"], one.seen(block, "in"), f"stream before block {layer}")
        same(found[f"blocks.{layer}.hook_resid_post"], one.seen(block, "out"), f"stream after block {layer}")


def clamps(one: Subject) -> None:
    """A clamped neuron is the down projection's input with one coordinate set."""
    layer, index = 1, 5
    down = one.down(layer)

    def change(x: Tensor) -> Tensor:
        x[..., index] = 3.0
        return x

    with one.model.intervening([wb.Clamp(f"neurons.{layer}.post:{index}", 3.0)]):
        edited = one.model(TOKENS)
    same(edited, one.changed(down, change), "logits under the clamp")
    assert float((edited - one.logits()).abs().max()) > 1e-3, "the clamp does nothing"


def decodes(one: Subject) -> None:
    """A neuron's direction is what a nudge of it adds to the stream in the mean over many tokens.

    Behind a norm one token's nudge also shrinks what else the MLP writes there; in the mean that cancels out.
    """
    layer, index, step = len(one.layers) - 1, 7, 1e-3
    tokens = torch.arange(160).view(8, 20) * 37 % tiny.VOCAB

    def nudge(x: Tensor) -> Tensor:
        x.view(*tokens.shape, -1)[..., index] += step  # OPT's MLPs see the tokens of all rows as one row
        return x

    down = one.down(layer)
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: tuple, out: Any) -> None:
        seen.append((out[0] if isinstance(out, tuple) else out).double())

    handle = one.layers[layer].register_forward_hook(keep)
    try:
        one.logits(tokens)
        one.changed(down, nudge, tokens)
    finally:
        handle.remove()
    moved = (seen[1] - seen[0]).flatten(0, 1).mean(0)
    direction = wb.surgery.direction_of(one.model, f"neurons.{layer}.post:{index}").double()
    cosine = float(torch.nn.functional.cosine_similarity(moved, direction, dim=0))
    assert cosine > 0.99, f"the direction of the neuron has a cosine of {cosine:.3f} with what a nudge writes"
    if one.model.network.into_stream(one.model.network.neuron_hook_point(layer, "post")).norm is None:
        ratio = float(moved.norm() / step / direction.norm())  # a residual multiplier is contained
        assert abs(ratio - 1) < 0.01, f"a nudge of the neuron writes {ratio:.3f} times its direction"


def runs_through_sae(one: Subject) -> None:
    """A dictionary that reconstructs exactly changes nothing, and a clamped latent adds its decoder row."""
    d, place = one.model.network.d_model, 1
    sae = wb.dictionaries.StandardSAE(d, 2 * d)
    sae.reads = sae.writes = f"blocks.{place}.hook_resid_post"
    eye = torch.eye(d)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye], 0))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    with one.model.spliced({f"blocks.{place}.hook_resid_post": sae}):
        same(one.model(TOKENS), one.logits(), "logits through an exact dictionary")
    stream = one.seen(one.layers[place], "out")
    with one.model.intervening([wb.Clamp(sae.feature(3), 2.5)]):
        found = one.model.capture(TOKENS, [f"blocks.{place}.hook_resid_post"])[f"blocks.{place}.hook_resid_post"]
    wanted = stream.clone()
    wanted[..., 3] += 2.5 - stream[..., 3].clamp(min=0)
    same(found, wanted, "stream under a clamped latent")


def attributes(one: Subject) -> None:
    """A graph's contributions sum to what they explain, and are what the model does where a latent is scaled.

    Transcoders write where the MLP's output enters the stream, and before a norm or a factor that stands in between.
    """
    points = one.model.hook_points
    places = [points[f"blocks.1.{word}"] for word in ("mlp.hook_in", "mlp.hook_out", "hook_mlp_out")]
    inside, words = f"{places[0].module}.", ["hook_mlp_out"]
    if places[0].module and places[1].key != places[2].key and not (places[2].module or "").startswith(inside):
        words.append("mlp.hook_out")
    for word in words:
        coders = random_transcoders(one, word, range(len(one.layers)))
        check_graph(one, coders, word)
    if places[0].module:
        graph = wb.attribute(one.model, coders[:1] + coders[2:], TOKENS[:, :8], max_latents=20)
        worst = max(graph.completeness())
        assert worst < 1e-3, f"where an MLP has no transcoder, the graph's sums miss by {worst:.2g}"


def check_graph(one: Subject, coders: list[Any], word: str) -> None:
    """A graph's sums, its target's logit, and its effects, in the plain model and by `verify_graph`."""
    tokens = TOKENS[:, :8]
    graph = wb.attribute(one.model, coders, tokens)
    logits = one.logits(tokens)[0, -1]
    (best,) = graph.provenance["target_tokens"]
    assert abs(graph.target.value - float(logits[best] - logits.mean())) < 1e-3, "the target is not the model's logit"
    worst = max(graph.completeness())
    assert worst < 1e-3, f"the graph's sums miss by {worst:.2g}"
    held = wb.attribution.verify_graph(one.model, coders, graph, 10, regimes=["direct"]).pearson["direct"]
    assert held > 0.999, f"with all else held, predicted and measured changes correlate by {held:.4f}"
    # a gradient predicts small steps: with random weights, taking a latent out whole turns other experts and heads on
    small = wb.attribution.verify_graph(one.model, coders, graph, 10, factor=0.998, regimes=["free"])
    pearson, slope = small.pearson["free"], small.slope["free"]
    assert pearson > 0.99, f"for a small step predicted and measured changes correlate by {pearson:.3f}"
    assert abs(slope - 1) < 0.05, f"for a small step measured changes are {slope:.3f} of those predicted"
    latents = sorted((n for n in graph.nodes if n.kind == "latent"), key=lambda n: -abs(n.gradient_effect))[:4]
    effects = torch.tensor([node.gradient_effect for node in latents])
    if word == "hook_mlp_out":
        modules = [one.layers[node.layer] for node in latents]
    elif "mlp.gate.hook_expert_weights" in str(list(one.model.hook_points)):
        return
    else:
        modules = [one.down(node.layer) for node in latents]
    nudged = torch.tensor(
        [
            moved(one, module, node.position, node.value * coders[node.layer].W_dec[node.feature.index], best)
            for node, module in zip(latents, modules, strict=True)
        ]
    )
    assert float((nudged - effects).abs().max()) < 0.05 * float(effects.abs().max()), "effects are not those of nudges"


def moved(one: Subject, module: nn.Module, position: int, written: Tensor, best: int) -> float:
    """The logit's change in the plain model for a vector more in what a module writes, from small steps."""
    tokens, step, values = TOKENS[:, :8], 0.01, []
    for sign in (step, -step):

        def nudge(_: nn.Module, __: tuple, out: Any, sign: float = sign) -> Any:
            x = (out[0] if isinstance(out, tuple) else out).clone()
            x.view(*tokens.shape, -1)[:, position] += sign * written.detach()
            return (x, *out[1:]) if isinstance(out, tuple) else x

        handle = module.register_forward_hook(nudge)
        try:
            logits = one.logits(tokens)[0, -1].double()
        finally:
            handle.remove()
        values.append(float(logits[best] - logits.mean()))
    return (values[0] - values[1]) / (2 * step)


def patches(one: Subject) -> None:
    """Ablating a head is setting its part of the output projection's input to zero."""
    layer, head = 1, 2
    heads, d_model = one.model.network.n_heads, one.model.network.d_model
    forms = {m: sizes(m) for m in one.layers[layer].modules()}
    attention = [m for m, size in forms.items() if size and size[0] % heads == 0 and size[1] == d_model]
    assert attention, "the plain model has no output projection of this width"

    def change(x: Tensor) -> Tensor:
        d_head = x.shape[-1] // heads
        x[..., head * d_head : (head + 1) * d_head] = 0.0
        return x

    with one.model.intervening([wb.interventions.RemoveHead(layer, head)]):
        edited = one.model(TOKENS)
    differences = [float((edited - one.changed(m, change)).abs().max()) for m in attention]
    assert min(differences) <= CLOSE * max(1.0, float(edited.abs().max())), f"off by {min(differences):.3g}"


def sparsifies(one: Subject) -> None:
    """Leaving out weak neurons is setting them to zero before the down projection."""
    thresholds = [0.5] * len(one.layers)
    handles = []
    for layer in range(len(one.layers)):
        down = one.down(layer)
        weight = down.weight.detach() if type(down).__name__ != "Conv1D" else down.weight.detach().T
        norms = weight.norm(dim=0)

        def change(_: nn.Module, args: tuple, norms: Tensor = norms) -> tuple:
            return (torch.where((args[0] * norms).abs() > 0.5, args[0], 0.0), *args[1:])

        handles.append(down.register_forward_pre_hook(change))
    try:
        wanted = one.logits()
    finally:
        for handle in handles:
            handle.remove()
    same(wb.sparsity.with_sparsity(one.model, thresholds)(TOKENS), wanted, "logits of the sparse model")


def reopened(child: Any) -> Any:
    """A child's checkpoint in plain transformers."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        child.save_pretrained(Path(scratch) / "child")
        return AutoModelForCausalLM.from_pretrained(
            Path(scratch) / "child", dtype=torch.float32, attn_implementation="eager"
        ).eval()


def bakes(one: Subject) -> None:
    """A baked edit, saved and opened by plain transformers, does what the intervention did."""
    edits = [wb.Ablate("neurons.1.post:5"), wb.Scale("neurons.0.post:3", 2.0)]
    with one.model.intervening(edits):
        wanted = one.model(TOKENS)
    plain = reopened(wb.bake(one.model, edits))
    with torch.no_grad():
        same(plain(input_ids=TOKENS, use_cache=False).logits, wanted, "logits of the checkpoint")


def prunes(one: Subject) -> None:
    """Half of every matrix inside the blocks is zero, experts included."""
    child = wb.surgery.prune(one.model, 0.5, score="magnitude")
    plain = reopened(child)
    inside = {n: p for n, p in plain.named_parameters() if p.ndim >= 2 and any(f".{i}." in n for i in range(3))}
    zero = sum(int((p == 0).sum()) for p in inside.values())
    share = zero / sum(p.numel() for p in inside.values())
    assert share > 0.45, f"a share of {share:.2f} of the weights inside the blocks is zero, where 0.5 was asked"
    with torch.no_grad():
        same(plain(input_ids=TOKENS, use_cache=False).logits, child.model(TOKENS), "logits of the checkpoint")
    try:
        calibrated = wb.surgery.prune(one.model, 0.5)
    except wb.surgery.SurgeryError as error:
        if "Wanda needs the inputs of every matrix" not in str(error):
            raise
    else:
        assert calibrated.history[-1]["covered"] > 0.95


def merges_heads(one: Subject) -> None:
    """Where the key and value heads of a group are equal already, joining them changes nothing."""
    plain = zoo.build(one.name)
    heads = getattr(plain.config, "num_key_value_heads", None)
    with torch.no_grad():
        for path, module in plain.named_modules():
            if heads and path.endswith(("k_proj", "v_proj")):
                for tensor in module.parameters():
                    first = tensor[: len(tensor) // heads]
                    tensor.copy_(torch.cat([first] * heads))
        wanted = plain(input_ids=TOKENS, use_cache=False).logits
    child = wb.surgery.merge_kv_heads(wb.load_model(plain, tokenizer=tiny.tokenizer()), 1, method="mean", tokens=64)
    same(child.model(TOKENS), wanted, "logits after equal heads were joined")
    opened = reopened(child)
    with torch.no_grad():
        same(opened(input_ids=TOKENS, use_cache=False).logits, wanted, "logits of the checkpoint")


def saves(one: Subject) -> None:
    """A child that was saved opens again with the same weights, hash and logits."""
    child = wb.surgery.prune(one.model, 0.1, score="magnitude")
    with tempfile.TemporaryDirectory() as scratch:
        child.save_pretrained(Path(scratch) / "child")
        opened = wb.load_model(str(Path(scratch) / "child"))
        assert opened.weights_hash == child.model.weights_hash, "another hash"
        same(opened(TOKENS), child.model(TOKENS), "logits")


CAPABILITIES: dict[str, Callable[[Subject], None]] = {
    "open": opens,
    "generate": generates,
    "capture": captures,
    "clamp": clamps,
    "decode": decodes,
    "neurons": reads_neurons,
    "SAE": runs_through_sae,
    "attribution": attributes,
    "deembed": deembeds,
    "heads": patches,
    "sparsity": sparsifies,
    "bake": bakes,
    "prune": prunes,
    "merge heads": merges_heads,
    "save": saves,
}
"""By the name of the column."""

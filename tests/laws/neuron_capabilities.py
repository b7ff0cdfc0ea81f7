"""Tables of neurons and de-embeddings, held against products of plain weights and nudges of the plain model.

Modules are found by the shapes of their weights and by the tensors that pass through them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tiny
import torch
from subjects import TOKENS, Subject, random_transcoders, same, sizes
from torch import Tensor, nn

import workbench as wb

FAR = 1e4
"""Size of a vector for which the small number that a norm adds to its variance is nothing."""
TOP = 6
STEP = 0.5


def reads_neurons(one: Subject) -> None:
    """Tables hold the highest products of gate, up and down with the LM head, of both signs and in each scale.

    What down writes passes the norm or the factor in front of the stream. Where one matrix holds gate and up, or there
    is no gate, those are refused.
    """
    head = one.plain.get_output_embeddings().weight.detach()
    final = final_norm(one)
    weights = plain_neurons(one)
    for which in ("gate", "up", "down"):
        if which not in weights:
            try:
                wb.decode_neurons(one.model, which)
            except wb.WorkbenchError:
                continue
            raise AssertionError(f"no matrix of its own is {which}, and yet it is decoded")
        rows = weights[which]
        scaled = {"raw": rows, "unit": rows / rows.norm(dim=1, keepdim=True), "norm": through(final, rows, unit=True)}
        for scale, vectors in scaled.items():
            table = wb.decode_neurons(one.model, which, TOP, scale=scale)
            scores = vectors @ head.T
            for side, sign in enumerate((1, -1)):
                best = (sign * scores).topk(TOP).values
                held, ids = torch.from_numpy(table.scores[side]), torch.from_numpy(table.tokens[side]).long()
                same(held, best, f"scores of {which}, {scale}")
                same((sign * scores).gather(1, ids), best, f"scores of the tokens of {which}, {scale}")


def plain_neurons(one: Subject) -> dict[str, Tensor]:
    """The weights of all neurons, `[layers * d_mlp, d_model]`: what gate and up read and down adds to the stream."""
    found: dict[str, list[Tensor]] = {}
    for layer, block in enumerate(one.layers):
        down = one.down(layer)
        width, d_model = sizes(down) or (0, 0)
        inputs = one.seen(down, "in")
        flipped = {m: one_flipped(one, m, down) for m in block.modules() if sizes(m) == (d_model, width)}
        feeding = {m: x for m, x in flipped.items() if not torch.equal(x, inputs)}
        for module, moved in feeding.items():
            linear = torch.allclose(moved, -inputs, rtol=1e-4, atol=1e-5)
            name = "up" if linear or len(feeding) == 1 else "gate"
            found.setdefault(name, []).append(matrix(module))
        found.setdefault("down", []).append(written(one, down, matrix(down).T, (block, "out")))
    return {name: torch.cat(rows) for name, rows in found.items() if len(rows) == len(one.layers)}


def one_flipped(one: Subject, module: nn.Module, down: nn.Module) -> Tensor:
    """What enters the down projection where another module's output has the other sign."""
    handle = module.register_forward_hook(lambda _, __, out: -out)
    try:
        return one.seen(down, "in")
    finally:
        handle.remove()


def written(one: Subject, module: nn.Module, vectors: Tensor, place: tuple[nn.Module, str]) -> Tensor:
    """What vectors behind a linear map add to the stream at a place: through a norm without its scale, or a factor."""
    norm = norm_with(one, one.plain, entered=one.seen(module, "out"))
    if norm is not None:
        return through(norm, vectors)
    before = one.seen(*place)
    nudge = STEP * torch.randn(vectors.shape[-1], generator=torch.Generator().manual_seed(0))
    handle = module.register_forward_hook(lambda _, __, out: out + nudge)
    try:
        moved = (one.seen(*place) - before)[0, -1]
    finally:
        handle.remove()
    factor = float(moved @ nudge / (nudge @ nudge))
    same(moved, factor * nudge, "what lies between a projection and the stream, but for a factor")
    return factor * vectors


def behind_attention(one: Subject, block: nn.Module) -> tuple[nn.Module, str]:
    """Where the stream is read that an attention has written into: in front of the MLP's norm, or behind the block."""
    entering = one.seen(block, "in")
    later = [norm for norm, before, _ in norms(one, block) if not close(before, entering)]
    return (later[-1], "in") if later else (block, "out")


def deembeds(one: Subject) -> None:
    """Tokens of a latent are those that move it, at its position and through each head, and those that it moves.

    Norms count with their gains alone. Tokens are what the plain model brings into its first layer.
    """
    last = len(one.layers) - 1
    (coder,) = random_transcoders(one, "hook_mlp_out", [last])
    index, heads = 5, one.model.network.n_heads
    found = wb.attribution.deembed(one.model, coder, index, top=tiny.VOCAB, heads=heads * (last + 1))
    reads = one.model.capture(TOKENS, [coder.reads])[coder.reads]
    norm, row = norm_with(one, one.layers[last], left=reads), coder.W_enc[:, index].detach()
    parts = token_parts(one)
    check_scores(found.drives, through(norm, parts) @ row, "direct")
    parallel = torch.equal(one.seen(one.layers[last], "in"), middle_of(one, last))
    assert len(found.heads) == heads * (last + (not parallel)), "other heads than those in front of the latent"
    truth: dict[int, Tensor] = {}
    for each in found.heads:
        if each.layer not in truth:
            truth[each.layer] = through_heads(one, each.layer, parts)
        scores = through(norm, truth[each.layer][each.head]) @ row
        check_scores(each.drives, scores, f"head {each.head} of layer {each.layer}")
        assert abs(each.strength - float(scores.std())) < 1e-3 * max(1.0, each.strength), "another strength"
    check_scores(found.promotes, promoted(one, coder, index), "promoted")


def check_scores(found: Any, truth: Tensor, what: str) -> None:
    """Scores of all tokens, the strongest first."""
    assert sorted(found.ids) == list(range(len(truth)))
    same(torch.tensor(found.scores), truth[found.ids], what)
    assert found.scores == sorted(found.scores, reverse=True)


def final_norm(one: Subject) -> Any:
    """The norm in front of the LM head."""
    return norm_with(one, one.plain, left=one.seen(one.plain.get_output_embeddings(), "in"))


def token_parts(one: Subject) -> Tensor:
    """What each token brings into the first layer, `[vocab, d_model]`: less the same where the embedding is zero."""
    tokens = torch.arange(tiny.VOCAB)[:, None]
    entering = one.seen(one.layers[0], "in", tokens)
    handle = one.plain.get_input_embeddings().register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    try:
        alone = one.seen(one.layers[0], "in", tokens)
    finally:
        handle.remove()
    return (entering - alone)[:, 0]


def middle_of(one: Subject, layer: int) -> Tensor:
    """The stream that the MLP of a layer reads, in front of its norm."""
    reads = one.model.capture(TOKENS, [f"blocks.{layer}.mlp.hook_in"])[f"blocks.{layer}.mlp.hook_in"]
    fits = [before for _, before, after in norms(one, one.layers[layer]) if close(after, reads)]
    return fits[0] if fits else reads


def through_heads(one: Subject, layer: int, parts: Tensor) -> Tensor:
    """What each head alone adds to the stream for tokens that it attends to with weight 1: `[heads, vocab, d_model]`.

    Prompts of one token leave the heads no choice. What the attention reads is set to the token's own part, and to 0.
    """
    block, heads = one.layers[layer], one.model.network.n_heads
    names = [f"blocks.{layer}.attn.{word}" for word in ("hook_in", "hook_z")]
    read, z = (x.flatten(2) for x in one.model.capture(TOKENS, names).values())
    norm = norm_with(one, block, left=read)
    outs = [m for m in block.modules() if sizes(m) == (z.shape[-1], one.model.network.d_model)]
    out = next(m for m in outs if close(one.seen(m, "in"), z))
    tokens = torch.arange(tiny.VOCAB)[:, None]
    values = []
    for entering in (through(norm, parts), torch.zeros_like(parts)):
        with without_sinks(block, heads), replaced(norm or block, entering[:, None], "out" if norm else "in"):
            values.append(one.seen(out, "in", tokens)[:, 0])
    value = (values[0] - values[1]).unflatten(-1, (heads, -1))  # [vocab, heads, d_head]
    each = torch.einsum("vhd,mhd->hvm", value, matrix(out).unflatten(1, (heads, -1)))
    return written(one, out, each.flatten(0, 1), behind_attention(one, block)).view(each.shape)


def promoted(one: Subject, coder: Any, index: int) -> Tensor:
    """What one unit of a latent adds to each logit along the stream, less the mean over the tokens: `[vocab]`."""
    point = f"blocks.{len(one.layers) - 1}.hook_resid_post"
    direction = coder.W_dec[index].detach()
    with one.model.intervening([wb.Steer.along(coder.writes, direction)]):
        moved = one.model.capture(TOKENS, [point])[point]
    vector = (moved - one.seen(one.layers[-1], "out"))[0, -1]
    head = one.plain.get_output_embeddings()
    small = 1e-2 * torch.randn(vector.shape, generator=torch.Generator().manual_seed(0))
    both = []
    for entering in (small, 0 * small):
        with replaced(head, entering.expand(*TOKENS.shape, -1), "in"):
            both.append(one.logits()[0, -1])
    logits, products = both[0] - both[1], head.weight.detach() @ small
    factor = float(logits @ products / (products @ products))
    logits = factor * head.weight.detach() @ through(final_norm(one), vector[None])[0]
    return logits - logits.mean()


def matrix(module: nn.Module) -> Tensor:
    """The weights of a linear map, `[out, in]`."""
    weight = module.weight.detach()  # type: ignore[union-attr]
    return weight.T if type(module).__name__ == "Conv1D" else weight  # type: ignore[return-value, operator]


def norms(one: Subject, within: nn.Module) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Modules that have gains or nothing, with what enters and leaves each in a pass over `TOKENS`, in that order."""
    found: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple, out: Any) -> None:
        wide = isinstance(out, Tensor) and out.shape[-1] == one.model.network.d_model
        if wide and args and args[0].shape == out.shape and not close(args[0], out):
            shape = (*TOKENS.shape, -1)
            found.append((module, args[0].reshape(shape), out.reshape(shape)))

    handles = []
    for module in within.modules():
        own = list(module.parameters())
        if not list(module.children()) and all(gain.ndim == 1 for gain in own):
            handles.append(module.register_forward_hook(keep))
    try:
        one.logits()
    finally:
        for handle in handles:
            handle.remove()
    return found


def norm_with(one: Subject, within: nn.Module, *, entered: Tensor | None = None, left: Tensor | None = None) -> Any:
    """The norm that a tensor enters or leaves; None if there is none."""
    for norm, before, after in norms(one, within):
        if (entered is not None and close(before, entered)) or (left is not None and close(after, left)):
            return norm
    return None


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def through(norm: Any, vectors: Tensor, *, unit: bool = False) -> Tensor:
    """Vectors behind a norm, without its bias, and without its scale unless `unit`; as they are behind None."""
    if norm is None:
        return vectors
    with torch.no_grad():
        normed = norm(FAR * vectors) - norm(0 * vectors)
        centres = close(norm(FAR * (vectors + 1)), norm(FAR * vectors))
    if unit:
        return normed
    middle = vectors - vectors.mean(-1, keepdim=True) if centres else vectors
    return normed * middle.pow(2).mean(-1, keepdim=True).sqrt()


@contextlib.contextmanager
def replaced(module: nn.Module, value: Tensor, side: str) -> Iterator[None]:
    """With another tensor in place of what goes into or comes out of a module."""

    def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})

    if side == "in":
        handle = module.register_forward_pre_hook(enter, with_kwargs=True)
    else:
        handle = module.register_forward_hook(lambda *_: value)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def without_sinks(block: nn.Module, heads: int) -> Iterator[None]:
    """Without the learned logits by which heads may attend to nothing."""
    own = [one for one in block.parameters() if one.shape == (heads,)]
    kept = [one.detach().clone() for one in own]
    with torch.no_grad():
        for one in own:
            one.fill_(-1e4)
        try:
            yield
        finally:
            for one, old in zip(own, kept, strict=True):
                one.copy_(old)

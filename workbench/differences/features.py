"""How features differ: what neurons decode to, which latents fire, how far dictionaries and edits carry over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.core.errors import WorkbenchError
from workbench.core.precision import in_float64
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.sites import flattened
from workbench.dictionaries.sites import places as one_site
from workbench.differences.pairs import Pair
from workbench.differences.results import (
    DecodingDifference,
    DictionaryDifference,
    EditDifference,
    LatentDifference,
)
from workbench.differences.texts import Windows
from workbench.evaluation.losses import kl_divergence, predictions
from workbench.model.edits import Intervention
from workbench.model.in_force import uninterrupted
from workbench.model.lm_head import LMHead
from workbench.model.weights import ModelError

NEURONS = 1024
"""Neurons that are decoded, at most; a sample of the changed ones."""


def compare_decodings_of(pair: Pair, top: int, seed: int) -> DecodingDifference | None:
    """The share of changed neurons that keep their top token, beside a random change; None where none changed."""
    a, b = pair.a, pair.b
    weights = "gate" if "gate" in a.network.neuron_sites else "up"
    chance = torch.Generator().manual_seed(seed)
    found: list[tuple[str, Tensor, Tensor]] = []
    try:
        for layer in range(a.network.n_layers):
            one, other = (model.network.neuron_directions(layer, weights).cpu() for model in (a, b))
            if one.shape != other.shape:
                continue
            differs = (one != other).any(1).nonzero()[:, 0]
            most = max(1, NEURONS // a.network.n_layers)
            differs = differs[torch.randperm(len(differs), generator=chance)[:most]].sort().values
            found += [(f"neurons.{layer}.{weights}:{place}", one[place], other[place]) for place in differs.tolist()]
        heads = a.network.lm_head, b.network.lm_head
    except (WorkbenchError, ModelError):
        return None
    if not found:
        return None
    before, after = torch.stack([row[1] for row in found]), torch.stack([row[2] for row in found])
    noise = torch.randn(before.shape, generator=chance)
    noise *= ((after - before).norm(dim=1) / noise.norm(dim=1).clamp(min=1e-30))[:, None]
    tops = [_tops(heads[0], before), _tops(heads[1], after), _tops(heads[1], before + noise)]
    kept, control = ((tops[0] == one).float().mean() for one in tops[1:])
    moved = (tops[0] != tops[1]).nonzero()[:, 0].tolist()
    moved.sort(key=lambda n: -float((after[n] - before[n]).norm() / before[n].norm().clamp(min=1e-30)))
    changed = []
    for number in moved[:top]:
        words = a.token_labels([int(tops[0][number]), int(tops[1][number])])
        changed.append((found[number][0], words[0], words[1]))
    return DecodingDifference(float(kept), float(control), len(found), changed)


def _tops(head: LMHead, vectors: Tensor) -> Tensor:
    """The token with the highest product of each vector, `[n]`."""
    return torch.cat([head.products(some.to(head.device)).argmax(-1).cpu() for some in vectors.split(64)])


def compare_dictionary(
    pair: Pair, dictionary: Dictionary, windows: Windows, top: int, stops: Callable[[], bool]
) -> DictionaryDifference:
    """How often latents fire in both models, and how much of either's activations a dictionary explains.

    Raises:
        DictionaryError: it does not fit the models, or has several hook points.
    """
    reads, writes = one_site(dictionary, pair.a)
    names = list(dict.fromkeys((reads.name, writes.name)))
    fired = torch.zeros(2, dictionary.n_features, dtype=torch.float64)
    squares = torch.zeros(2, 2, dtype=torch.float64)  # [model, unexplained | variance]
    sums = torch.zeros(2, dictionary.d_out, dtype=torch.float64)
    count = 0
    with uninterrupted(), torch.inference_mode():
        for some in windows.corpus.batches(pair.a, windows.context, windows.batch, windows.tokens, windows.seed):
            for side, model in enumerate((pair.a, pair.b)):
                with model.intervening(list(pair.beside[side])):
                    seen = model.capture(some.tokens, names)
                x, y = (flattened(seen[one.name], one)[some.content].to(pair.a.device) for one in (reads, writes))
                fired[side] += (dictionary.encode(x).dense() > 0).double().sum(0).cpu()
                y = y.float()
                off = y - dictionary.reconstruct(x).float()
                squares[side] += torch.stack([in_float64(off.square()).sum(), in_float64(y.square()).sum()]).cpu()
                sums[side] += in_float64(y).sum(0).cpu()
            count += int(some.content.sum())
            if stops():
                break
    variance = squares[:, 1] - sums.square().sum(1) / max(count, 1)
    share = (squares[:, 0] / variance.clamp(min=1e-30)).tolist()
    rates = fired / max(count, 1)
    mean = rates.mean(0)
    error = (2 * mean * (1 - mean) / max(count, 1)).sqrt()
    z = torch.where(error > 0, (rates[1] - rates[0]) / error.clamp(min=1e-30), 0)
    latents = [
        LatentDifference(f"{dictionary.name}:{n}", float(rates[0, n]), float(rates[1, n]), float(z[n]))
        for n in z.abs().argsort(descending=True, stable=True)[:top].tolist()
        if float(z[n])
    ]
    return DictionaryDifference(dictionary.name, share[0], share[1], latents)


def compare_edit(pair: Pair, edit: Intervention, windows: Windows) -> EditDifference:
    """KL(plain ‖ edited) by token in both models.

    Raises:
        EditError: an intervention that does not fit the models.
    """
    total, count = [0.0, 0.0], 0
    with uninterrupted(), torch.inference_mode():
        for some in windows.corpus.batches(pair.a, windows.context, windows.batch, windows.tokens, windows.seed):
            pairs = predictions(some.content)
            count += int(pairs.sum())
            for side, model in enumerate((pair.a, pair.b)):
                beside: Sequence[Intervention] = list(pair.beside[side])
                plain, edited = (model.run(some.tokens, model.bind(edits)) for edits in (beside, [*beside, edit]))
                total[side] += float(in_float64(kl_divergence(plain[:, :-1], edited[:, :-1], pairs)).sum())
    return EditDifference(str(edit), total[0] / max(count, 1), total[1] / max(count, 1))

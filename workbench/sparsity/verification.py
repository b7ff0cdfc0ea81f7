"""A second way to the same figures: a plain Hugging Face model, one text at a time, zeros put in by module hooks.

Only the choice of the texts is shared with the measurement: no edits, no batches, no padding, no shared losses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.checks import checked
from workbench.core.precision import in_float64
from workbench.corpus import Corpus
from workbench.model.language_model import LanguageModel
from workbench.model.modules import is_conv1d
from workbench.sparsity.evaluation import Sample
from workbench.sparsity.masking import LEAST, SparsityError, checked_thresholds
from workbench.sparsity.measure import sample_corpora
from workbench.sparsity.result import Sparsity


@checked(SparsityError)
def verify_sparsity(
    model: LanguageModel, sparsity: Sparsity, corpus: Corpus, held_out: Corpus | None = None
) -> tuple[float, float]:
    """The relative rises in perplexity at a measurement's thresholds, by an independent forward pass.

    Args:
        model: the model of the measurement.
        sparsity: the measurement's result.
        corpus, held_out: the texts of the measurement.

    Returns:
        The rise on the texts that the thresholds are found on, and that on the reported texts.

    Raises:
        SparsityError: another model or other texts than those of the measurement, or a model that runs through
            dictionaries.
    """
    about = sparsity.provenance
    how = {name: about[name] for name in ("context", "batch", "seed")}
    corpora = sample_corpora(corpus, held_out, how["seed"])
    texts = [one["hash"] for one in about["corpora"]]
    if not model.is_named(about["model_hash"]) or texts != [one.hash for one in corpora]:
        raise SparsityError("The sparsity was measured on another model or on other texts than these.")
    sizes = about["tokens"] // 2, about["tokens"] - about["tokens"] // 2
    rises = []
    for one, tokens in zip(corpora, sizes, strict=True):
        sample = Sample.read(model, one, lambda _: None, tokens=tokens, **how)
        rows = [
            (ids[mask].tolist(), content[mask].tolist())
            for batch in sample.batches
            for ids, mask, content in zip(batch.tokens, batch.mask, batch.content, strict=True)
        ]
        rises.append(independent_rise(model, checked_thresholds(model, sparsity), rows))
    return rises[0], rises[1]


def independent_rise(model: LanguageModel, thresholds: list[float], rows: list[tuple[list[int], list[bool]]]) -> float:
    """The relative rise in perplexity on rows of tokens.

    Args:
        model: the model.
        thresholds: for each layer.
        rows: token ids, and whether each of them counts.

    Raises:
        SparsityError: a model that is sharded over processes, or runs through dictionaries, which its plain modules
            don't.
    """
    if model.network.processes is not None:
        raise SparsityError(f"{model.name} is sharded over several processes; verify it in one.")
    if model.splices:
        raise SparsityError(f"{model.name} runs through dictionaries; its plain modules alone are another model.")
    memo: dict[int, Any] = {
        id(one): one for one in [*model.network.module.parameters(), *model.network.module.buffers()]
    }
    twin: Any = copy.deepcopy(model.network.module, memo)  # new modules with the same weights
    plain = _mean_loss(twin, rows)
    for layer, threshold in enumerate(thresholds):
        point = model.network.neuron_hook_point(layer, "post")
        down = twin.get_submodule(point.module or "")
        down.register_forward_pre_hook(_zeroing(down, max(threshold, LEAST)))
    return math.exp(_mean_loss(twin, rows) - plain) - 1


def _zeroing(down: nn.Module, threshold: float) -> Callable[[nn.Module, tuple], tuple]:
    weight: Any = down.weight
    written = torch.linalg.vector_norm(weight.detach().float(), dim=1 if is_conv1d(down) else 0)

    def before(_: nn.Module, args: tuple) -> tuple:
        values: Tensor = args[0].clone()
        values[(values * written).abs() < threshold] = 0
        return values, *args[1:]

    return before


@torch.inference_mode()
def _mean_loss(module: Any, rows: list[tuple[list[int], list[bool]]]) -> float:
    total, count = 0.0, 0
    for ids, counts in rows:
        logits = module(input_ids=torch.tensor([ids], device=module.device), use_cache=False).logits[0].float()
        places = [place for place in range(len(ids) - 1) if counts[place] and counts[place + 1]]
        targets = torch.tensor([ids[place + 1] for place in places], device=module.device)
        total += float(in_float64(nn.functional.cross_entropy(logits[places], targets, reduction="none")).sum())
        count += len(places)
    return total / count

"""Continuations of one prompt by two models, and the KL between the models at each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.core.checks import Positive, checked
from workbench.core.display import Shown
from workbench.evaluation.losses import kl_divergence
from workbench.model.generation import Generation
from workbench.model.in_force import uninterrupted
from workbench.model.language_model import LanguageModel
from workbench.surgery.child import Child
from workbench.surgery.child_building import SurgeryError


@dataclass(frozen=True)
class Texts(Shown):
    """Greedy continuations of one prompt by the model at the start and the changed one."""

    before: Generation
    after: Generation
    kl: list[float]
    """KL(start ‖ changed) in nats, at each token of the text before."""
    kl_own: list[float]
    """The same at each token of the text after."""


@checked(SurgeryError)
def compare_texts(
    start: LanguageModel,
    changed: LanguageModel | Child,
    prompt: str | torch.Tensor,
    max_new_tokens: Positive = 48,
    *,
    beside: Sequence[Any] = (),
) -> Texts:
    """Greedy continuations of one prompt by two models that share a tokenizer.

    Args:
        start: the model before the change.
        changed: the model after it; a child brings the interventions beside it.
        prompt: a text, or token ids `[pos]`.
        max_new_tokens: the most tokens that each writes.
        beside: interventions that belong to the changed model.

    Raises:
        PromptError: an empty prompt, or one that does not fit into the context.
    """
    if isinstance(changed, Child):
        changed, beside = changed.model, beside or changed.beside
    with uninterrupted():
        before = start.generate(prompt, max_new_tokens)
        after = changed.generate(prompt, max_new_tokens, interventions=beside)
        tokens = start.prompt_batch([prompt], max_new_tokens)[0][0]  # [pos]
        kls = [
            _kl(start, changed, tokens, torch.tensor(text.tokens, device=start.device), beside)
            for text in (before, after)
        ]
    return Texts(before, after, *kls)


@torch.inference_mode()
def _kl(
    start: LanguageModel, changed: LanguageModel, prompt: torch.Tensor, new: torch.Tensor, beside: Sequence[Any]
) -> list[float]:
    """KL(start ‖ changed) of the predictions of the new tokens `[n]`."""
    if len(new) == 0:
        return []
    tokens, length = torch.cat([prompt, new.long()])[None], len(prompt)
    logits = []
    for model, edits in ((start, start.bind(())), (changed, changed.bind(beside))):
        logits.append(model.run(tokens, edits, prompt_length=length)[0, length - 1 : -1])
    return kl_divergence(*logits).tolist()

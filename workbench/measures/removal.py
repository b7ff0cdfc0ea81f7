"""What happens to a prediction when a part of the model is taken out, beside others of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from workbench.core.checks import Integer, Natural, Raises, checked
from workbench.core.progress import Progress
from workbench.evaluation.losses import cross_entropy, kl_divergence
from workbench.model.edits import EditError, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt
from workbench.model.sampling import PromptError


@dataclass(frozen=True)
class Effect:
    """What a prediction becomes under interventions."""

    probability: float
    """Of the target."""
    change: float
    """Of the target's log-probability, in nats; below 0 where it gets less likely."""
    kl: float
    """KL(before ‖ after) of the whole prediction, in nats."""


@dataclass(frozen=True)
class Removal:
    """A removal beside others of its kind; `measure_removal` returns one."""

    target: int
    """The token whose probability is followed."""
    before: float
    """Its probability without the removal."""
    effect: Effect
    others: list[Effect]

    @property
    def share(self) -> float:
        """The share of the others that change the target's log-probability at least as much; NaN without others."""
        as_much = [abs(one.change) >= abs(self.effect.change) for one in self.others]
        return sum(as_much) / len(as_much) if as_much else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """The effects as plain data."""
        return asdict(self) | {"share": self.share}


@checked(EditError)
def measure_removal(
    model: LanguageModel,
    text: Annotated[Prompt, Raises(PromptError)],
    removed: Sequence[Intervention],
    others: Sequence[Sequence[Intervention]] = (),
    *,
    target: Natural | None = None,
    position: Integer = -1,
    interventions: Sequence[Intervention] = (),
    progress: Progress | None = None,
) -> Removal:
    """The change of a prediction when something is taken out, beside the same for others.

    Args:
        model: the model.
        text: a text, a `chat_prompt`, or token ids `[pos]`.
        removed: interventions that take it out.
        others: the same for each of the others.
        target: the token whose probability is followed; None for the likeliest one.
        position: whose prediction is read; negative from the end.
        interventions: act in every run, in front of what is taken out.
        progress: told the share that is done.

    Raises:
        EditError: an intervention that can't act, a position that the text lacks, or no such token.
        PromptError: an empty text, or one longer than the context.
    """
    tokens = model.as_tokens(text)
    length = tokens.shape[1]
    if len(tokens) != 1 or not -length <= position < length:
        raise EditError(f"A prediction is read at a position from 0 to {length - 1} of one text, not at {position}.")
    if target is not None and target >= model.network.vocab_size:
        raise EditError(f"A token is an id from 0 to {model.network.vocab_size - 1:,}, not {target}.")
    last = length - position % length

    def logits(more: Sequence[Intervention]) -> Tensor:
        with torch.no_grad():
            return model.run(tokens, model.bind([*interventions, *more]), last=last)[0, :1].float()  # [1, vocab]

    plain = logits(())
    token = torch.tensor([int(plain.argmax()) if target is None else target], device=plain.device)
    before = -float(cross_entropy(plain, token))
    effects = []
    for place, more in enumerate((removed, *others)):
        if progress:
            progress(place / (len(others) + 1), "Taking it out" if place == 0 else f"Taking out another, {place}")
        after = logits(more)
        log = -float(cross_entropy(after, token))
        kl = max(0.0, float(kl_divergence(plain, after)))
        effects.append(Effect(float(torch.tensor(log).exp()), log - before, kl))
    return Removal(int(token), float(torch.tensor(before).exp()), effects[0], effects[1:])

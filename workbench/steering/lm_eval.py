"""A model under interventions for lm-evaluation-harness (Gao et al., zenodo.org/records/10256836, `lm-eval`)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from workbench.core.checks import Positive, Raises, checked
from workbench.model.edits import EditError, Intervention
from workbench.model.language_model import LanguageModel
from workbench.model.sampling import Sampling
from workbench.steering.errors import SteeringError

ABSENT = "lm-evaluation-harness is not installed; install it with pip install 'workbench-lm[lm-eval]'."
LENGTH = 256
"""Tokens of an answer where a task states no number, as in the harness."""


@checked(SteeringError)
def lm_eval_model(
    model: LanguageModel,
    interventions: Annotated[Sequence[Intervention], Raises(EditError)] = (),
    *,
    batch: Positive = 8,
) -> Any:
    """A model for `lm_eval.simple_evaluate(model=…)` that runs under interventions, and those in force now.

    Tokens, contexts and chat templates are the harness's own; every pass goes through Workbench, so that several
    interventions at one hook point act one after another. What is scored counts as prompt: an intervention on generated
    positions acts where a task lets the model write, and is refused where it scores texts.

    Args:
        model: the model.
        interventions: what changes while it runs.
        batch: rows of a pass.

    Raises:
        SteeringError: lm-evaluation-harness is not installed, or the model has no tokenizer.
        EditError: an intervention that does not fit the model.
    """
    try:
        harness: Any = importlib.import_module("lm_eval.models.huggingface").HFLM
    except ImportError as error:
        raise SteeringError(ABSENT) from error
    if model.tokenizer is None:
        raise SteeringError(f"{model.name} has no tokenizer, and the harness gives texts.")
    model.bind(interventions)  # raises here
    edits = list(interventions)

    class Intervened(harness):
        """The harness's own model of transformers, whose passes run under the interventions."""

        def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
            if attn_mask is not None or labels is not None:
                raise SteeringError("The harness asks for an encoder, and this model has none; choose another task.")
            with torch.inference_mode(), model.intervening(edits):
                return model(inps)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """The answer to each request, one by one."""
            return [_answer(model, edits, *one.args) for one in requests]

    return Intervened(pretrained=model.network.module, tokenizer=model.tokenizer, backend="causal", batch_size=batch)


def _answer(model: LanguageModel, edits: Sequence[Intervention], context: str, settings: dict[str, Any]) -> str:
    """What the model writes behind a context, up to the first of the texts that end it."""
    until = settings.get("until") or []
    ends = [one for one in ([until] if isinstance(until, str) else until) if one]
    length = int(settings.get("max_gen_toks", LENGTH))
    sampled = bool(settings.get("do_sample", False)) and float(settings.get("temperature", 0.0)) > 0
    sampling = Sampling(temperature=float(settings.get("temperature", 0.0)) if sampled else 0.0, stop=tuple(ends))
    room = model.network.n_ctx - length
    if room < 1:
        raise SteeringError(f"The task wants {length:,} new tokens, but the context has {model.network.n_ctx:,}.")
    tokens = model.to_tokens(context)[0][-room:]
    text = model.generate(tokens, length, interventions=edits, sampling=sampling).text
    for end in ends:
        text = text.split(end)[0]
    return text

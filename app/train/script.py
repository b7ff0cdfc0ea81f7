"""A training as a script."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared import snippets

from train.runs import TrainingRequest

if TYPE_CHECKING:
    from workbench.model import LanguageModel


def training(source: str, model: LanguageModel, request: TrainingRequest) -> str:
    """The dictionary, its corpus, and the call of `train`."""
    name, built, how = request.call(model)
    arguments = ", ".join(f"{key}={value!r}" for key, value in built.items())
    keywords = ", ".join(f"{key}={value!r}" for key, value in how.items())
    return snippets.opening(source) + (
        f"dictionary = wb.dictionaries.{name}({arguments})\n"
        f"corpus = wb.Corpus.load({request.corpus!r})\n"
        f"wb.train(dictionary, model, {request.reads!r}, corpus, {keywords})\n"
    )

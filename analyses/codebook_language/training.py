"""Train the codebooks of the model that ships."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import workbench as wb
from analyses.codebook_language.plan import NAME, Plan
from analyses.shared.report import say
from workbench.core.shipped import HOME
from workbench.harvest import Harvest, Store


def train(model: wb.model.LanguageModel, plan: Plan, corpus: wb.Corpus, work: Path) -> None:
    """Train the codebooks, or resume, and write the model to the folder of bundled models."""
    books = {
        f"blocks.{layer}.attn.hook_z": wb.Codebook(
            576, plan.codes, plan.k, groups=9, hook_point=f"blocks.{layer}.attn.hook_z", name=f"heads-{layer}"
        )
        for layer in plan.layers
    }
    harvest = Harvest(model, corpus, list(books), tokens=plan.stored, context=256, seed=plan.seed)
    store = Store.write(harvest, work / "activations")
    for point, book in books.items():
        say(f"Training {book.name}")
        wb.train(
            book,
            tokens=plan.epochs * len(store),
            source=Store(store.folder, [point]),
            lr=3e-3,
            seed=plan.seed,
            folder=work / book.name,
        )
    how: dict[str, Any] = {"lr": plan.lr, "batch": 8, "context": 256, "decay": 0.3, "seed": plan.seed}
    tuned = wb.training.fine_tune(
        model,
        corpus,
        books,
        tokens=plan.tuned,
        frozen=True,
        fresh=False,
        folder=work / "tuned",
        log=lambda line: say(f"{line['tokens']:,} tokens, loss {line['ce']:.4f}, accuracy {line['accuracy']:.4f}"),
        **how,
    )
    tuned.about |= {"plan": asdict(plan)}
    wb.interventions.save_model(tuned, HOME / "data" / "models" / NAME, half=True)

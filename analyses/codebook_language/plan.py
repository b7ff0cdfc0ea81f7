"""Settings of the study of codebooks in a language model: topics, prompts, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import workbench as wb

NAME = "smollm2-codebooks"
SAE = Path(__file__).resolve().parents[2] / "data" / "dictionaries" / "resid-15"
TOPICS = {
    "dragon": r"\b(dragons?)\b",
    "music": r"\b(music|musicians?|songs?|guitars?|pianos?|violins?|orchestra|concerts?|melody|melodies)\b",
    "sea": r"\b(oceans?|seas?|sailors?|ships?|waves|harbou?r)\b",
    "space": r"\b(planets?|stars?|spaceships?|astronauts?|galaxy|galaxies|rockets?|asteroids?)\b",
    "garden": r"\b(gardens?|gardening|flowers?|tomato|tomatoes|seeds|soil)\b",
    "royalty": r"\b(kings?|queens?|castles?|knights?|princess|throne)\b",
    "bread": r"\b(bread|oven|flour|butter|dough|baked|baking)\b",
    "medicine": r"\b(doctors?|nurses?|hospitals?|patients?|surgery)\b",
}
"""Topics with patterns of their words, chosen before any was tried, among the commonest of the bundled corpus."""
TRIED = {
    "train": r"\b(trains?|railways?|railroads?|locomotives?)\b",
    "coffee": r"\b(coffee|tea|café|cup)\b",
    "crime": r"\b(police|crimes?|detectives?|thief|stolen)\b",
}
"""Topics on which the choice of codes and the number of forced codes were decided."""
PROMPTS = ("Once upon a time", "Last summer, my family", "Yesterday I", "It was early in the morning when")
METHODS = ("codes", "random codes", "SAE latent", "activation addition")


@dataclass(frozen=True)
class Plan:
    """What is trained and measured."""

    layers: tuple[int, ...] = (19, 20, 21, 22, 24, 25, 26, 27)
    """Layers with codebooks. The output of heads in lower layers reaches the words only through all later layers, and
    forcing it costs fluency. Layer 23 is left out: its codes alone cost twice the accuracy of those of layer 19."""
    codes: int = 1024
    """Codes of each head."""
    k: int = 8
    """Active codes of each head."""
    texts: int = 2000
    """Texts of the bundled corpus that are learned from; the others are measured on."""
    held_out: float = 0.3
    """Share of the real texts that are measured on."""
    stored: int = 250_000
    """Tokens whose activations are stored."""
    epochs: int = 2
    """Passes over these activations, for each codebook alone."""
    tuned: int = 150_000
    """Tokens on which all codebooks learn together, by the model's own loss."""
    lr: float = 1e-3
    measured: int = 16_384
    """Tokens of the loss and of accuracy."""
    searched: int = 150_000
    """Tokens in which topics are searched."""
    shown: int = 10
    """Codes listed for each topic."""
    forced: int = 48
    """Codes of a topic that are forced at once, at most k of each head."""
    least: int = 20
    """Least number of activations of a topic's code."""
    samples: int = 10
    """Texts of each prompt."""
    length: int = 200
    """Tokens of each text."""
    strengths: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    """Strengths of the baselines, in units of an activation's usual size, among which the equally costly one lies."""
    matching: int = 2
    """Texts of each prompt on which the strength is chosen."""
    seed: int = 0


SMALLEST = Plan(
    measured=512, searched=8192, samples=1, length=16, strengths=(0.1, 1.0), matching=1
)  # fmt: skip
"""Checks that the study runs."""


def texts(plan: Plan, real: str | None) -> dict[str, wb.Corpus]:
    """The corpus `learned`, and one or two that are measured on, by name; real text is a path or a name, or None."""
    stories = wb.Corpus.load("stories")
    learned = stories.take(plan.texts)
    rest = wb.Corpus(stories.texts[plan.texts :], f"stories[{plan.texts}:]", stories.note)
    if real is None:
        return {"learned": learned, "the model's own stories": rest}
    seen, unseen = wb.Corpus.load(real).split(plan.held_out, plan.seed)
    both = wb.Corpus([*learned.texts, *seen.texts], f"{learned.name} and {len(seen)} real texts")
    return {"learned": both, "the model's own stories": rest, "real text": unseen}

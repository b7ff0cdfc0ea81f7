"""The tuned lens that comes with Workbench, fitted to the default model; and what it predicts on other texts.

    python scripts/fit_lenses.py --real WIKITEXT --run runs/tuned-lens
    python scripts/fit_lenses.py --real WIKITEXT --run runs/tuned-lens --measure

WIKITEXT is a file of WikiText-2, whose passages of 300 characters and more are read as plain text. The first three
quarters of them and of the bundled stories are for fitting, of which `--passages` each are drawn; the rest is for
measuring. The run goes on where it stopped. `--save` writes the lens in 16 bits, `--measure` prints KL divergences by
layer as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path

import torch

import workbench as wb
from workbench.core.progress import SpokenProgress

SHORTEST = 300


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--save")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--passages", type=int, default=450)
    parser.add_argument("--start-tokens", type=int, default=24_000)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, real, stories = wb.load_model(), passages(Path(given.real)), list(wb.Corpus.load("stories").texts)
    parts = [(texts[: len(texts) * 3 // 4], texts[len(texts) * 3 // 4 :]) for texts in (real, stories)]
    drawn = [text for fitting, _ in parts for text in fitting[:: max(1, len(fitting) // given.passages)]]
    corpus = wb.Corpus(drawn, f"{len(drawn)} passages of WikiText-2 and of the bundled stories")
    how = {"tokens": given.tokens, "start_tokens": given.start_tokens, "lr": given.lr, "batch": given.batch}
    lens = wb.lens.fit_tuned_lens(
        model, corpus, **how, decay=1.0, folder=given.run, checkpoint_every=120.0, progress=SpokenProgress()
    )
    if given.save:
        assert lens.about is not None
        sizes = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in how.items())
        command = f"scripts/fit_lenses.py --real WIKITEXT --run RUN --passages {given.passages} {sizes}"
        about = {**lens.about.fitted_on, "command": command}
        lens.about = dataclasses.replace(lens.about, fitted_on=about)
        lens.save(given.save, half=True)
        lens = wb.lens.load_lens(given.save, model)
    if given.measure:
        for name, (_, held_out) in zip(("WikiText-2", "stories"), parts, strict=True):
            texts = wb.Corpus(held_out[:: max(1, len(held_out) // 40)], name)
            json.dump({name: wb.lens.measure_lens(model, lens, texts, tokens=2048).to_dict()}, sys.stdout)
            print(flush=True)


def passages(file: Path) -> list[str]:
    """The passages of a file of WikiText, with its marks of words and numbers undone."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").split("\n"))
    return [plain(line) for line in lines if len(line) >= SHORTEST and "=" not in line[:2]]


def plain(text: str) -> str:
    """A passage of WikiText as people write it."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?)%']|n't|'s)", r"\1", text)
    text = re.sub(r"\( ", "(", text)
    return re.sub(r'" ([^"]*) "', r'"\1"', text)


if __name__ == "__main__":
    main()

"""Luo et al., "Sparsing Law: Towards Large Language Models with Greater Activation Sparsity" (2024, arXiv 2411.02335).

Small transformers with gated MLPs learn the bundled stories, with ReLU and with SiLU, at several widths and depths; as
a third arm with PolyReLU (Zhuo et al. 2024, arXiv 2411.03884) and with the series activation of PanGu-π (Wang et al.
2023, arXiv 2312.17276). While each learns, the share of its neurons that can't be left out before perplexity rises by
1% is measured. Does it fall or rise with the data, as the paper's laws say, and does it depend on shape and on size?

    python analyses/sparsing_law.py --out reports/sparsing_law     # about an hour on one core; goes on if broken off
    python analyses/sparsing_law.py --out reports/quick --quick    # a minute, to see that it works

A run's points are kept once it has ended; a run that was broken off begins anew.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from report import Notes, provenance, say, write_json
from sparsing_law_fits import fits, verdicts
from sparsing_law_page import write_page
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import workbench as wb
from workbench.corpus import Corpus

FORMAT = 1
"""Of the notes; a new number runs everything anew."""


@dataclass(frozen=True)
class Shape:
    """A transformer's size."""

    d_model: int
    layers: int

    @property
    def ratio(self) -> float:
        """Width over depth."""
        return self.d_model / self.layers

    def __str__(self) -> str:
        return f"{self.d_model}x{self.layers}"


BASE = Shape(96, 3)
SHAPES = (Shape(64, 6), BASE, Shape(128, 2))
"""About as many weights each, at three ratios of width to depth."""
SIZES = (Shape(64, 2), BASE, Shape(128, 4))
"""One ratio of width to depth, at three sizes."""


@dataclass(frozen=True)
class Plan:
    """What is trained and measured."""

    points: tuple[int, ...] = (40_000, 80_000, 120_000, 180_000, 270_000, 400_000, 600_000, 900_000, 1_200_000)
    """Tokens after which a model is measured."""
    shapes: tuple[str, ...] = tuple(dict.fromkeys(map(str, (BASE, *SHAPES, *SIZES))))
    learned: tuple[str, ...] = ("polyrelu", "series")
    """Activations with weights of their own; on the base shape only."""
    seeds: int = 2
    """Trainings of the base shape with ReLU and with SiLU."""
    vocabulary: int = 512
    batch: int = 8
    context: int = 128
    lr: float = 2e-3
    warmup: int = 20
    """Steps."""
    measured: int = 8192
    """Tokens of a measurement, half to find thresholds on and half to report on."""
    p: float = 0.01
    seed: int = 0


QUICK = Plan(
    points=(4_096, 8_192, 16_384, 24_576),
    shapes=("32x1", "32x2"),
    seeds=1,
    vocabulary=300,
    batch=8,
    context=64,
    measured=1024,
)


class PolyReLU(nn.Module):
    """A learned polynomial of ReLU(x), of degree 3; its constant begins at 0, the other weights at a third."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.0, 1 / 3, 1 / 3, 1 / 3]))

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., d_mlp]` to the same."""
        positive = x.relu()
        constant, first, second, third = self.weights.unbind()
        return constant + positive * (first + positive * (second + positive * third))


class Series(nn.Module):
    """The sum of two SiLUs, each with a learned scale and shift of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([1.0, 0.5]))
        self.shifts = nn.Parameter(torch.tensor([0.0, -0.5]))

    def forward(self, x: Tensor) -> Tensor:
        """From `[..., d_mlp]` to the same."""
        parts = zip(self.scales.unbind(), self.shifts.unbind(), strict=True)
        return sum((nn.functional.silu(scale * x + shift) for scale, shift in parts), torch.zeros(()))


LEARNED: dict[str, type[nn.Module]] = {"polyrelu": PolyReLU, "series": Series}


def tokenizer(corpus: Corpus, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of these texts, with a BOS token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus.texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")


def untrained(activation: str, shape: Shape, plan: Plan, seed: int) -> Any:
    """A Llama of this shape, whose MLPs are 8/3 as wide as its stream."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=plan.vocabulary,
        hidden_size=shape.d_model,
        intermediate_size=8 * shape.d_model // 3 // 8 * 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.d_model // 16,
        max_position_embeddings=plan.context,
        hidden_act="silu" if activation in LEARNED else activation,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        activation=activation,
        architectures=["LlamaForCausalLM"],
    )
    module = LlamaForCausalLM(config)
    if activation in LEARNED:
        for block in module.model.layers:
            block.mlp.act_fn = LEARNED[activation]()
    return module


def run(name: str, plan: Plan, corpora: tuple[Corpus, Corpus], words: Any) -> dict[str, Any]:
    """Train one model, at a constant learning rate, and measure it on the way."""
    activation, shaped, number = name.split("-")
    shape = Shape(*map(int, shaped.split("x")))
    seed = plan.seed + int(number)
    module = untrained(activation, shape, plan, seed)
    model = wb.load_model(module, tokenizer=words)  # shares the weights, so that it is always as far as they are
    optimiser = torch.optim.AdamW(module.parameters(), plan.lr, betas=(0.9, 0.95), weight_decay=0.1)
    batches = corpora[0].batches(model, plan.context, plan.batch, seed=seed, repeat=True)
    left, seen, points = list(plan.points), 0, []
    module.train()
    for step in itertools.count(1):
        batch = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = plan.lr * min(1.0, step / plan.warmup)
        wanted = batch.tokens.masked_fill(~batch.content, -100)
        loss = module(input_ids=batch.tokens, attention_mask=batch.mask.long(), labels=wanted).loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        seen += int(batch.content.sum())
        if seen >= left[0]:
            points.append({"tokens": seen} | measured(model, corpora[1], plan))
            say(f"{name}: {seen:,} tokens, loss {points[-1]['loss']:.4f}, active {points[-1]['active']:.4f}")
            left.pop(0)
        if not left:
            break
    weights = sum(one.numel() for one in module.model.layers.parameters())
    return {"activation": activation, **asdict(shape), "ratio": shape.ratio, "weights": weights, "points": points}


def measured(model: wb.model.LanguageModel, corpus: Corpus, plan: Plan) -> dict[str, Any]:
    """The share of neurons that are needed, and the loss, on texts that were not learned from."""
    found = wb.measure_sparsity(
        model, corpus, plan.p, plan.measured, baselines=(), context=plan.context, batch=16, seed=plan.seed, resamples=200
    )
    low, high = found.reported.intervals["sparsity"]
    nothing, _ = wb.sparsity.measure_at_thresholds(
        model, 0.0, corpus, plan.measured // 2, context=plan.context, batch=16, seed=plan.seed, resamples=1
    )
    return {
        "active": 1 - found.sparsity,
        "low": 1 - high,
        "high": 1 - low,
        "nonzero": 1 - nothing.sparsity,
        "cett": found.cett,
        "rise": found.ppl_increase,
        "loss": found.reported.ce_plain,
        "passes": found.passes,
    }


def names(plan: Plan) -> list[str]:
    """Every run: activation, shape, and which of its trainings; those that tell most first."""
    base = str(BASE) if str(BASE) in plan.shapes else plan.shapes[0]
    found = [f"{activation}-{base}-0" for activation in ("relu", "silu", *plan.learned)]
    found += [f"{activation}-{shape}-0" for shape in plan.shapes if shape != base for activation in ("relu", "silu")]
    return found + [f"{activation}-{base}-{n}" for n in range(1, plan.seeds) for activation in ("relu", "silu")]


def experiment(folder: Path, plan: Plan) -> dict[str, Any]:
    """All runs, the fitted laws, and what becomes of the paper's findings."""
    corpus = Corpus.load("stories")
    corpora = corpus.split(0.1, plan.seed)
    words = tokenizer(corpora[0], plan.vocabulary)
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, asdict(plan), corpus.hash])
    runs = {name: notes.get(name, lambda name=name: run(name, plan, corpora, words)) for name in names(plan)}
    for name, one in runs.items():
        one["fits"] = fits([point["tokens"] for point in one["points"]], [point["active"] for point in one["points"]])
        best = min(one["fits"], key=lambda law: one["fits"][law]["aic"])
        say(f"{name}: ends at {one['points'][-1]['active']:.4f}, best law {best}")
    model = wb.load_model(untrained("relu", BASE, plan, plan.seed), tokenizer=words)
    made = provenance(model, plan.seed, plan=asdict(plan), corpus=corpus.hash)
    return {"provenance": made, "runs": runs, "findings": verdicts(runs)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the analysis from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/sparsing_law"), help="folder of the report")
    parser.add_argument("--quick", action="store_true", help="tiny models and little data, to see that it works")
    parser.add_argument("--summary", type=Path, help="also write the figures worth citing to this JSON file")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so small that a second thread costs more than it gains
    results = experiment(asked.out, QUICK if asked.quick else Plan())
    assert math.isfinite(sum(one["points"][-1]["active"] for one in results["runs"].values()))
    write_json(asked.out / "results.json", results)
    if asked.summary:
        write_json(asked.summary, results, indent=1)
    say(f"Written: {write_page(asked.out, results)}")


if __name__ == "__main__":
    main()

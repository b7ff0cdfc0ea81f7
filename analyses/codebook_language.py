"""Tamkin, Taufeeque, Goodman, "Codebook Features" (2023, arXiv 2310.17230), sections 4 and 5: codebooks in a language
model, what their codes stand for, and steering by forcing them.

SmolLM2-135M-Instruct runs through codebooks on every head of eight late layers. Its own weights stay as they are, so
that what ships is the codes alone. How much does it lose, which codes tell a topic's words from all others, and does
forcing them make it write about the topic? Rivals: as many codes drawn at random, an SAE latent, and the addition of an
activation (Turner et al. 2023, arXiv 2308.10248), each as strong as leaves the text as likely to the plain model.

    python analyses/codebook_language.py --out reports/codebook_language                  # from the model that ships
    python analyses/codebook_language.py --out reports/codebook_language --train --real valid.txt   # train it first
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch
from codebook_language_page import write_page
from report import Notes, provenance, say, write_json
from torch import Tensor

import workbench as wb
from workbench.corpus import TokenBatch
from workbench.harvest import Harvest, Store
from workbench.index.tokens import text_ends
from workbench.interventions.opening import BUNDLED
from workbench.model.edits import Edit, Group, Run

FORMAT = 1
"""Of the notes; a new number measures everything anew."""
NAME = "smollm2-codebooks"
SAE = Path(__file__).resolve().parents[1] / "data" / "dictionaries" / "resid-15"
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
"""Chosen, with their words, before any was tried, from what the bundled corpus writes about most."""
TRIED = {
    "train": r"\b(trains?|railways?|railroads?|locomotives?)\b",
    "coffee": r"\b(coffee|tea|café|cup)\b",
    "crime": r"\b(police|crimes?|detectives?|thief|stolen)\b",
}
"""On these it was decided how codes are chosen and how many are forced."""
PROMPTS = ("Once upon a time", "Last summer, my family", "Yesterday I", "It was early in the morning when")
METHODS = ("codes", "random codes", "SAE latent", "activation addition")


@dataclass(frozen=True)
class Plan:
    """What is trained and measured."""

    layers: tuple[int, ...] = (19, 20, 21, 22, 24, 25, 26, 27)
    """What heads further down write reaches the words only through all that follows, and takes fluency with it. Layer
    23 is left out: its codes alone cost twice the accuracy that those of layer 19 do."""
    codes: int = 1024
    """Of each head."""
    k: int = 8
    texts: int = 2000
    """Of the bundled corpus that are learned from; the others are measured on."""
    held_out: float = 0.3
    """Share of the real texts that are measured on."""
    stored: int = 250_000
    """Tokens whose activations are stored."""
    epochs: int = 2
    """Through these activations, for each codebook alone."""
    tuned: int = 150_000
    """Tokens on which all learn together, by the model's own loss."""
    lr: float = 1e-3
    measured: int = 16_384
    searched: int = 150_000
    """Tokens in which topics are searched."""
    shown: int = 10
    """Codes that are told of each topic."""
    forced: int = 48
    """Codes of a topic that are forced at once, of each head at most k."""
    least: int = 20
    """A code that is active less often is no code of a topic."""
    samples: int = 10
    """Of each prompt."""
    length: int = 200
    strengths: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    """Of the rivals, in units of an activation's usual size: where the one that costs as much is looked for."""
    matching: int = 2
    """Texts of each prompt on which that is done."""
    seed: int = 0


def texts(plan: Plan, real: str | None) -> dict[str, wb.Corpus]:
    """What is learned from, and the two corpora that are measured on; real text only if there is some."""
    stories = wb.Corpus.load("stories")
    learned = stories.take(plan.texts)
    rest = wb.Corpus(stories.texts[plan.texts :], f"stories[{plan.texts}:]", stories.note)
    if real is None:
        return {"learned": learned, "the model's own stories": rest}
    seen, unseen = wb.Corpus.load(real).split(plan.held_out, plan.seed)
    both = wb.Corpus([*learned.texts, *seen.texts], f"{learned.name} and {len(seen)} real texts")
    return {"learned": both, "the model's own stories": rest, "real text": unseen}


# Training


def train(model: wb.model.LanguageModel, plan: Plan, corpus: wb.Corpus, work: Path) -> None:
    """Train the codebooks, or go on, and put the model where it ships."""
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
    wb.interventions.save_model(tuned, BUNDLED / NAME, half=True)


# Measures


@torch.inference_mode()
def language(model: wb.model.LanguageModel, corpus: wb.Corpus, plan: Plan) -> dict[str, float]:
    """Loss in nats and accuracy of the next token."""
    loss = right = count = 0.0
    for batch in corpus.batches(model, 256, 16, plan.measured, seed=plan.seed):
        pairs = batch.content[:, :-1] & batch.content[:, 1:]
        logits = model(batch.tokens, mask=batch.mask)[:, :-1][pairs]
        target = batch.tokens[:, 1:][pairs]
        loss += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
        right += float((logits.argmax(-1) == target).sum())
        count += len(target)
    return {"loss": loss / count, "accuracy": right / count, "tokens": count}


@dataclass(frozen=True)
class Counts:
    """How often each code is active, and how often on the words of each topic."""

    active: Tensor
    """`[codes of all layers]`."""
    hits: Mapping[str, Tensor]
    """By topic, `[codes of all layers]`."""
    matches: Mapping[str, int]


@torch.inference_mode()
def count_codes(model: wb.model.LanguageModel, corpus: wb.Corpus, topics: Mapping[str, str], plan: Plan) -> Counts:
    """One pass over texts; a match's token is the one in which it begins."""
    patterns = {topic: regex.compile(pattern, regex.IGNORECASE) for topic, pattern in topics.items()}
    points = list(model.splices)
    books: list[Any] = [model.splices[point] for point in points]
    offsets = np.cumsum([0, *(book.n_features for book in books)])
    active = torch.zeros(int(offsets[-1]), dtype=torch.long)
    hits = {topic: torch.zeros_like(active) for topic in topics}
    matches = dict.fromkeys(topics, 0)
    for batch in corpus.batches(model, 256, 16, plan.searched, seed=plan.seed):
        marked = dict(zip(topics, _marked(model, corpus, batch, patterns.values()), strict=True))
        found = model.capture(batch.tokens, points, mask=batch.mask)
        codes = torch.cat(
            [
                book.encode(found[point][batch.content].flatten(1)).indices + int(offset)
                for point, book, offset in zip(points, books, offsets[:-1], strict=True)
            ],
            1,
        )  # [tokens, codes that are active]
        active += torch.bincount(codes.flatten(), minlength=len(active))
        for topic, mask in marked.items():
            hits[topic] += torch.bincount(codes[mask].flatten(), minlength=len(active))
            matches[topic] += int(mask.sum())
    return Counts(active, hits, matches)


def _marked(model: wb.model.LanguageModel, corpus: wb.Corpus, batch: TokenBatch, patterns: Any) -> Iterator[Tensor]:
    """For each pattern which of a batch's content tokens a match begins in: bool `[tokens]`."""
    ends = text_ends(model, [corpus.texts[int(text)] for text in batch.texts])
    for pattern in patterns:
        mask = torch.zeros_like(batch.content)
        for row, (text, of_text) in enumerate(zip(batch.texts.tolist(), ends, strict=True)):
            starts = [match.start(1) for match in pattern.finditer(corpus.texts[text])]
            places = torch.from_numpy(np.searchsorted(of_text, np.array(starts, np.int64), "right"))
            mask[row] = torch.isin(batch.positions[row], places)
        yield mask[batch.content]


def codes_of_topic(model: wb.model.LanguageModel, counts: Counts, topic: str, plan: Plan) -> list[dict[str, Any]]:
    """The codes that tell a topic's words best, by F1 of precision and recall, the best first."""
    hits, active = counts.hits[topic].double(), counts.active.double()
    f1 = 2 * hits / (active + counts.matches[topic])
    f1[counts.active < plan.least] = 0
    return [_row(model, counts, topic, place) for place in f1.topk(plan.shown).indices.tolist()]


def _row(model: wb.model.LanguageModel, counts: Counts, topic: str, place: int) -> dict[str, Any]:
    """What is told of a code, by its place among those of all layers."""
    books: list[Any] = list(model.splices.values())
    book, index = books[place // books[0].n_features], place % books[0].n_features
    hits, active = int(counts.hits[topic][place]), int(counts.active[place])
    precision, recall = hits / max(active, 1), hits / max(counts.matches[topic], 1)
    return {"feature": str(book.feature(index)), "precision": precision, "recall": recall}


class Nudge:
    """An edit that adds a vector to every activation at a hook point, so that a gradient by it can be taken."""

    def __init__(self, hook_point: str, added: Tensor):
        self.hook_point, self.added = hook_point, added

    def bind(self, model: wb.model.LanguageModel, plan: object) -> list[Edit]:
        """See `Intervention`."""
        shape = model.hook_points[self.hook_point].shape
        return [Edit(self.hook_point, lambda x: x + self.added.view(shape))]


def effects(
    model: wb.model.LanguageModel, corpus: wb.Corpus, patterns: Mapping[str, str], plan: Plan
) -> dict[str, Tensor]:
    """For each topic how much each code, `[codes of all layers]`, raises the log probability of the topic's words, to
    first order and compared with the mean code of its head: its product with the gradient at its hook point, mean over
    the positions of some texts."""
    vocabulary = model.token_texts(list(range(model.network.vocab_size)))
    batch = next(iter(corpus.batches(model, 64, 16, seed=plan.seed)))
    points = list(model.splices)
    found = {}
    for topic, pattern in patterns.items():
        compiled = regex.compile(pattern, regex.IGNORECASE)
        ids = [number for number, text in enumerate(vocabulary) if compiled.fullmatch(text.strip())]
        added = [torch.zeros(model.hook_points[point].width, requires_grad=True) for point in points]
        edits = model.bind([Nudge(point, one) for point, one in zip(points, added, strict=True)])
        with torch.enable_grad():
            logits = model.network.run(batch.tokens, Run([Group(edits)]), mask=batch.mask)[batch.content]
            gained = (logits[:, ids].logsumexp(1) - logits.logsumexp(1)).mean()
            slopes = torch.autograd.grad(gained, added)
        parts = []
        for point, slope in zip(points, slopes, strict=True):
            book: Any = model.splices[point]
            gain = torch.einsum("gnd,gd->gn", book.codes, slope.view(book.groups, -1))  # [groups, n_codes]
            parts.append((gain - gain.mean(1, keepdim=True)).flatten())
        found[topic] = torch.cat(parts)
    return found


def strongest(effect: Tensor, plan: Plan) -> list[int]:
    """Places of the codes, among those of all layers, that raise a topic's words most; of each head at most k."""
    of_head: dict[int, int] = {}
    chosen: list[int] = []
    for place in effect.argsort(descending=True).tolist():
        head = place // plan.codes
        if of_head.get(head, 0) < plan.k and len(chosen) < plan.forced:
            of_head[head] = of_head.get(head, 0) + 1
            chosen.append(place)
    return chosen


# Steering


Edits = Sequence[Any]


@dataclass(frozen=True)
class Texts:
    """Steered texts, and how they read."""

    texts: list[str]
    perplexity: float
    """Of the texts under the plain model: exp of the mean over all tokens."""
    distinct: float
    """Share of different pairs of neighbouring tokens, mean over texts."""

    def on_topic(self, pattern: str) -> float:
        """Share of the texts with a word of a topic."""
        return sum(bool(regex.search(pattern, text, regex.IGNORECASE)) for text in self.texts) / len(self.texts)


@torch.inference_mode()
def write(model: wb.model.LanguageModel, judge: wb.model.LanguageModel, edits: Edits, plan: Plan) -> Texts:
    """Continue every prompt so and so often under edits, and let the plain model judge it."""
    bos = torch.tensor([model.tokenizer.bos_token_id])
    prompts = [torch.cat([bos, model.to_tokens(prompt)[0]]) for prompt in PROMPTS for _ in range(plan.samples)]
    how: dict[str, Any] = {"temperature": 1.0, "seed": plan.seed, "interventions": edits, "stop": False}
    made = model.generate_batch(prompts, plan.length, **how)
    nll, pairs = [], []
    for prompt, one in zip(prompts, made, strict=True):
        tokens = torch.cat([prompt, torch.tensor(one.tokens)])
        logprobs = judge(tokens[None])[0, len(prompt) - 1 : -1].log_softmax(-1)
        nll.append(-logprobs.gather(1, tokens[len(prompt) :, None]).mean())
        pairs.append(len(set(zip(one.tokens, one.tokens[1:], strict=False))) / (len(one.tokens) - 1))
    return Texts([one.text for one in made], float(torch.stack(nll).mean().exp()), sum(pairs) / len(pairs))


def forced(features: Sequence[Any]) -> Edits:
    """Codes that take the place of their groups' least similar ones while text is written."""
    return [wb.Force(feature, positions="generated") for feature in features]


def matched(rival: Callable[[float], Edits], wanted: float, plain: wb.model.LanguageModel, plan: Plan) -> float:
    """The strength at which a rival's texts are as likely to the plain model as is `wanted`, in nats per token.

    The perplexity at rising strengths is measured on a few texts until it is above that, and what lies between is taken
    from a straight line.
    """
    few = replace(plan, samples=plan.matching, seed=plan.seed + 1000)
    tried: list[tuple[float, float]] = []  # costs and strengths
    for strength in plan.strengths:
        cost = math.log(write(plain, plain, rival(strength), few).perplexity)
        tried.append((max([cost, *(known for known, _ in tried)]), strength))
        if cost >= wanted:
            break
    return float(np.interp(wanted, *zip(*tried, strict=True)))


@functools.cache
def rival_sae() -> tuple[wb.dictionaries.Dictionary, wb.index.FeatureIndex]:
    """The SAE that ships, and its index."""
    return wb.load_dictionary(SAE), wb.open_index(SAE / "index")


def sae_latent(topic: str, patterns: Mapping[str, str]) -> tuple[dict[str, Any], Callable[[float], Edits]]:
    """The latent that tells the topic's words best, and what clamps it to so many times its highest activation."""
    sae, index = rival_sae()
    hit = index.search(regex=f"(?i){patterns[topic]}", limit=1)[0]
    assert hit.score is not None
    latent = sae.feature(hit.feature.index)
    said = {"feature": str(latent), "precision": hit.score.precision, "recall": hit.score.recall}
    return said, lambda strength: [wb.Clamp(latent, strength * hit.highest, positions="generated")]


@torch.inference_mode()
def directions(
    plain: wb.model.LanguageModel, corpus: wb.Corpus, patterns: Mapping[str, str], plan: Plan
) -> dict[str, tuple[float, Tensor]]:
    """For each topic the mean activation on its words less that on all tokens, where the SAE is, as a unit vector; and
    the usual distance of activations from their mean."""
    point = rival_sae()[0].reads
    compiled = {topic: regex.compile(pattern, regex.IGNORECASE) for topic, pattern in patterns.items()}
    parts: list[Tensor] = []
    marks: dict[str, list[Tensor]] = {topic: [] for topic in patterns}
    for batch in corpus.batches(plain, 256, 16, plan.searched // 2, seed=plan.seed):
        for topic, mask in zip(patterns, _marked(plain, corpus, batch, compiled.values()), strict=True):
            marks[topic].append(mask)
        parts.append(plain.capture(batch.tokens, [point], mask=batch.mask)[point][batch.content])
    x = torch.cat(parts)  # [tokens, d_model]
    size = float((x - x.mean(0)).norm(dim=1).mean())
    away = {topic: x[torch.cat(mask)].mean(0) - x.mean(0) for topic, mask in marks.items()}
    return {topic: (size, direction / direction.norm()) for topic, direction in away.items()}


def random_codes(model: wb.model.LanguageModel, codes: Sequence[str], seed: int) -> list[Any]:
    """As many codes, of the same heads."""
    books = {one.name: one for one in model.splices.values()}  # type: ignore[attr-defined]
    chance = torch.Generator().manual_seed(seed)
    named = (feature.rsplit(":", 1) for feature in codes)
    return [books[name].drawn_like(int(index), chance) for name, index in named]


def steer(
    topic: str,
    found: Sequence[str],
    models: tuple[wb.model.LanguageModel, wb.model.LanguageModel],
    direction: Callable[[], tuple[float, Tensor]],
    plan: Plan,
    *,
    notes: Notes,
) -> dict[str, Any]:
    """One topic by all methods."""
    model, plain = models
    books = {one.name: one for one in model.splices.values()}  # type: ignore[attr-defined]
    codes = [books[name].feature(int(index)) for name, index in (one.rsplit(":", 1) for one in found)]
    latent, clamped = sae_latent(topic, TOPICS | TRIED)

    def added(strength: float) -> Edits:
        size, unit = direction()
        return [wb.Steer.along(rival_sae()[0].reads, unit, strength * size, positions="generated")]

    def by_codes(features: Sequence[Any]) -> dict[str, Any]:
        return told(write(model, plain, forced(features), plan), topic)

    def by_rival(rival: Callable[[float], Edits]) -> dict[str, Any]:
        strength = matched(rival, math.log(rows["codes"]["perplexity"]), plain, plan)
        return told(write(plain, plain, rival(strength), plan), topic) | {"strength": strength}

    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "codes": lambda: by_codes(codes),
        "random codes": lambda: by_codes(random_codes(model, found, plan.seed)),
        "SAE latent": lambda: by_rival(clamped),
        "activation addition": lambda: by_rival(added),
    }
    rows: dict[str, Any] = {"latent": latent}
    for name, way in ways.items():
        rows[name] = notes.get(f"steering {topic} by {name}", way)
    said = ", ".join(
        f"{name} {rows[name]['on_topic']:.0%} (perplexity {rows[name]['perplexity']:.0f})" for name in ways
    )
    say(f"{topic}: {said}")
    return rows


def told(made: Texts, topic: str) -> dict[str, Any]:
    """What is kept of steered texts."""
    pattern = (TOPICS | TRIED)[topic]
    on = [text for text in made.texts if regex.search(pattern, text, regex.IGNORECASE)]
    sample = (on or made.texts)[0]
    row = {"on_topic": made.on_topic(pattern), "perplexity": made.perplexity, "distinct": made.distinct}
    return row | {"sample": sample}


def experiment(folder: Path, plan: Plan, real: str | None) -> dict[str, Any]:
    """Everything that is measured, from the model that ships."""
    plain, model = wb.load_model(), wb.load_model(NAME)
    corpora = texts(plan, real)
    stamp = [FORMAT, model.hash, asdict(plan), {name: corpus.hash for name, corpus in corpora.items()}]
    notes = Notes(folder / "work" / "notes.jsonl", stamp)
    cost = {
        where: {
            name: notes.get(f"{name} on {where}", lambda m=one, c=corpus: language(m, c, plan))
            for name, one in (("plain", plain), ("codebooks", model))
        }
        for where, corpus in corpora.items()
        if where != "learned"
    }
    for where, found in cost.items():
        say(f"{where}: accuracy {found['plain']['accuracy']:.4f}, with codebooks {found['codebooks']['accuracy']:.4f}")
    learned = texts(plan, None)["learned"]

    def topics() -> dict[str, Any]:
        counts = count_codes(model, learned, TOPICS | TRIED, plan)
        dead = float((counts.active == 0).double().mean())
        codes = {topic: codes_of_topic(model, counts, topic, plan) for topic in TOPICS | TRIED}
        raising = effects(model, learned, TOPICS | TRIED, plan)
        forced = {
            topic: [_row(model, counts, topic, place) for place in strongest(effect, plan)]
            for topic, effect in raising.items()
        }
        return {"dead": dead, "matches": dict(counts.matches), "codes": codes, "forced": forced}

    found = notes.get("topics", topics)
    away = functools.cache(lambda: directions(plain, learned, TOPICS, plan))
    unsteered = notes.get("unsteered", lambda: _unsteered(plain, model, plan))
    steered = {
        topic: steer(
            topic,
            [row["feature"] for row in found["forced"][topic]],
            (model, plain),
            lambda t=topic: away()[t],
            plan,
            notes=notes,
        )
        for topic in TOPICS
    }
    return {
        "provenance": provenance(model, plan.seed, plan=asdict(plan)),
        "cost": cost,
        "topics": found,
        "unsteered": unsteered,
        "steering": steered,
    }


def _unsteered(plain: wb.model.LanguageModel, model: wb.model.LanguageModel, plan: Plan) -> dict[str, Any]:
    """How often both models write about the topics by themselves."""
    rows = {}
    for name, one in (("plain", plain), ("codebooks", model)):
        made = write(one, plain, [], plan)
        on = {topic: made.on_topic(pattern) for topic, pattern in TOPICS.items()}
        rows[name] = {"on_topic": on, "perplexity": made.perplexity, "distinct": made.distinct}
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the analysis from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/codebook_language"), help="folder of the report")
    parser.add_argument("--train", action="store_true", help="train the codebooks, or go on doing so, first")
    parser.add_argument("--real", help="real text to learn from and to measure on, beside the bundled corpus")
    parser.add_argument("--work", type=Path, default=Path("runs/codebook_language"), help="activations, checkpoints")
    parser.add_argument("--summary", type=Path, help="also write the figures worth citing to this JSON file")
    asked = parser.parse_args(arguments)
    plan = Plan()
    if asked.train:
        train(wb.load_model(), plan, texts(plan, asked.real)["learned"], asked.work)
    results = experiment(asked.out, plan, asked.real)
    write_json(asked.out / "results.json", results)
    if asked.summary:
        write_json(asked.summary, results, indent=1)
    say(f"Written: {write_page(asked.out, results, METHODS)}")


if __name__ == "__main__":
    main()

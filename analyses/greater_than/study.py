"""Dunefsky, Chlenski and Nanda (2024, arXiv 2406.11944), section 5: the greater-than task, on the default model.

"The war lasted from the year 1732 to the year 17": the next two digits should be greater than 32. GPT-2 small writes
years as two tokens, so that the paper compares the probabilities of all endings above 32 and below. SmolLM2 splits
every digit off: the prompt stops at the century, and what can be compared is the *first differing digit*, the decade,
that is 4 to 9 for 32 against 0 to 2 (the year's own decade counts for neither, since it goes on both ways).

    P-difference = P(digits above the year's decade) - P(digits below it)

How much of it is left with a transcoder in an MLP's place, and without that MLP? Which latents carry the year's decade,
and what are they in words, from weights alone?

    python analyses/greater_than.py --out reports/greater_than
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import workbench as wb
from analyses.greater_than.page import write_page
from analyses.shared.report import Notes, provenance, say, write_json
from workbench.attribution.deembedding import head_drives, token_drives
from workbench.dictionaries.coder import SparseCoder
from workbench.model.edits import Edit, Group, Run

FORMAT = 1
"""Of the notes; a new number measures everything anew."""
PUBLISHED = {"model": 0.883, "transcoder 10": 0.798}
"""The paper's P-difference on GPT-2 small, with endings of two digits in one token."""
NOUNS = ("war", "siege", "reign", "voyage", "project", "strike", "trial", "drought", "expedition", "treaty")
CENTURIES = (16, 17, 18)
DECADES = tuple(range(2, 8))
"""Decades of start years: two digits at least lie above and below."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    prompts: int = 150
    graphs: int = 12
    """Prompts whose attribution graphs are made."""
    top: int = 10
    """Latents and tokens listed."""
    seed: int = 0


def prompts(plan: Plan) -> list[tuple[str, int, int]]:
    """Prompts with their start year's decade and unit, drawn without order."""
    every = list(itertools.product(NOUNS, CENTURIES, DECADES, range(2, 9)))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(plan.seed)).tolist()[: plan.prompts]
    chosen = [every[place] for place in order]
    return [
        (f"The {noun} lasted from the year {century}{decade}{unit} to the year {century}", decade, unit)
        for noun, century, decade, unit in chosen
    ]


def digit_ids(model: wb.model.LanguageModel) -> list[int]:
    """The tokens of the ten digits.

    Raises:
        ValueError: the model does not write digits as tokens of their own.
    """
    found = [model.to_tokens(str(digit), start=False)[0].tolist() for digit in range(10)]
    if any(len(ids) != 1 for ids in found):
        raise ValueError(f"{model.name} does not write each digit as one token; the task needs another form there.")
    return [ids[0] for ids in found]


def p_difference(probabilities: Tensor, decades: Tensor) -> Tensor:
    """P(digits above the decade) - P(digits below): `[n]`, from probabilities of the ten digits `[n, 10]`."""
    digits = torch.arange(10)
    above, below = digits > decades[:, None], digits < decades[:, None]
    return (probabilities * above).sum(1) - (probabilities * below).sum(1)


def behaviour(
    model: wb.model.LanguageModel, asked: Sequence[tuple[str, int, int]], edits: Sequence[Edit] = ()
) -> dict[str, Any]:
    """Mean P-difference with its standard error, the digits' whole probability, and how often the best digit is above
    the decade or on it."""
    ids, decades = torch.tensor(digit_ids(model)), torch.tensor([decade for _, decade, _ in asked])
    groups: dict[int, list[int]] = {}
    rows = [model.to_tokens(text)[0] for text, _, _ in asked]
    for number, row in enumerate(rows):
        groups.setdefault(len(row), []).append(number)
    probabilities = torch.zeros(len(asked), 10)
    with torch.inference_mode():
        for places in groups.values():
            for some in torch.tensor(places).split(25):
                tokens = torch.stack([rows[number] for number in some.tolist()])
                run = Run([Group(model.network.prepare(edits))]) if edits else None
                logits = model.network.run(tokens, run, last=1)[:, -1]
                probabilities[some] = logits.softmax(-1)[:, ids]
    found = p_difference(probabilities, decades)
    best = probabilities.argmax(1)
    return {
        "p_difference": float(found.mean()),
        "standard_error": float(found.std() / len(found) ** 0.5),
        "digits": float(probabilities.sum(1).mean()),
        "not_below": float((best >= decades).double().mean()),
        "by_digit": [probabilities[decades == decade].mean(0).tolist() for decade in DECADES],
    }


def replaced(coder: SparseCoder) -> list[Edit]:
    """The edits that put a transcoder's output in the place of its MLP's, from the second token on."""
    seen: list[Tensor] = []

    def remember(x: Tensor) -> Tensor:
        seen[:] = [x]
        return x

    def write(x: Tensor) -> Tensor:
        made = coder.reconstruct(seen.pop())
        return torch.cat([x[:, :1], made[:, 1:]], 1)

    return [Edit(coder.reads, remember), Edit(coder.writes, write)]


def removed(coder: SparseCoder) -> list[Edit]:
    """The edit that zeroes the MLP that a transcoder stands for, from the second token on."""
    return [Edit(coder.writes, lambda x: torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], 1))]


def carriers(
    model: wb.model.LanguageModel, coders: Sequence[SparseCoder], asked: Sequence[tuple[str, int, int]], plan: Plan
) -> dict[str, Any]:
    """Latents behind the logit of digits above the decade, less that of digits below, by their summed effects.

    The target is the difference between the digit right above the decade and the one right below it.
    """
    ids = digit_ids(model)
    effects: dict[str, dict[str, Any]] = {}
    checks: list[dict[str, Any]] = []
    for number, (text, decade, _) in enumerate(asked[: plan.graphs]):
        graph = wb.attribute(model, list(coders), text, (ids[decade + 1], ids[decade - 1]))
        year = [place for place, token in enumerate(graph.prompt) if token.isdigit()][2]
        for node in graph.nodes:
            if node.feature is None or node.kind != "latent":
                continue
            said = {"feature": str(node.feature), "layer": node.layer, "index": node.feature.index}
            one = effects.setdefault(str(node.feature), said | dict.fromkeys(("effect", "free", "on_decade"), 0.0))
            one["effect"] += node.effect / plan.graphs
            one["free"] += node.gradient_effect / plan.graphs
            one["on_decade"] += node.effect / plan.graphs if node.position == year else 0.0
            one["nodes"] = one.get("nodes", 0) + 1
        checked = wb.attribution.verify_graph(model, list(coders), graph, 10)
        checks.append(
            {
                "prompt": text,
                "value": graph.target.value,
                "completeness": max(graph.completeness()),
                "shares": graph.shares,
                "pearson": checked.pearson,
                "frozen_as_free": checked.frozen_as_free,
            }
        )
        say(f"graph {number + 1} of {plan.graphs}: correlation {checked.pearson['free']:.3f}")
    ranked = sorted(effects.values(), key=lambda one: -abs(one["free"]))
    on_decade = sorted(effects.values(), key=lambda one: -abs(one["on_decade"]))
    return {"latents": ranked[: plan.top], "on_decade": on_decade[: plan.top], "graphs": checks}


def by_decade(
    model: wb.model.LanguageModel, coder: SparseCoder, index: int, asked: Sequence[tuple[str, int, int]]
) -> dict[str, Any]:
    """A latent's mean value on the start year's tokens and at the end of the prompt, by decade."""
    sums = {place: [[0.0, 0] for _ in DECADES] for place in ("decade", "unit", "end")}
    with torch.inference_mode():
        for text, decade, _ in asked:
            tokens = model.to_tokens(text)
            texts = model.token_texts(tokens[0])
            digits = [place for place, token in enumerate(texts) if token.isdigit()]
            values = coder.encode(model.capture(tokens, [coder.reads])[coder.reads][0]).value_of(index)
            for name, place in (("decade", digits[2]), ("unit", digits[3]), ("end", len(texts) - 1)):
                one = sums[name][DECADES.index(decade)]
                one[0] += float(values[place])
                one[1] += 1
    return {name: [total / count if count else None for total, count in row] for name, row in sums.items()}


def words(model: wb.model.LanguageModel, coder: SparseCoder, index: int, plan: Plan) -> dict[str, Any]:
    """A latent's de-embedding, and against the ten digits: by the token itself and through the strongest heads."""
    ids = digit_ids(model)
    found = wb.attribution.deembed(model, coder, index, top=plan.top, heads=3)
    heads = head_drives(model, coder, index)
    direct = token_drives(model, coder, index)
    spread = heads[..., ids].std(-1)  # [layers, heads]: how differently a head treats the digits
    best = spread.flatten().topk(4).indices.tolist()
    through = [divmod(place, heads.shape[1]) for place in best]
    written = coder.direction(index).float()
    logits = model.network.unembedding()[ids] @ (written * model.network.final_norm()[0])
    return {
        "feature": str(coder.feature(index)),
        "deembedding": found.to_dict(),
        "digits": {
            "direct": direct[ids].tolist(),
            "heads": [{"layer": a, "head": b, "scores": heads[a, b, ids].tolist()} for a, b in through],
            "writes": (logits - logits.mean()).tolist(),
        },
    }


def experiment(
    model: wb.model.LanguageModel, coders: Sequence[SparseCoder], plan: Plan, folder: Path
) -> dict[str, Any]:
    """Everything that is measured."""
    hashes = [one.hash for one in coders]
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, model.hash, hashes, asdict(plan)])
    asked = prompts(plan)
    say(f"{len(asked)} prompts, such as: {asked[0][0]}")
    results: dict[str, Any] = {"provenance": provenance(model, plan.seed, plan=asdict(plan), transcoders=hashes)}
    results["example"] = asked[0][0]
    results["model"] = notes.get("model", lambda: behaviour(model, asked))
    say(f"P-difference {results['model']['p_difference']:.3f}")
    results["mlps"] = []
    for one in coders:
        row: dict[str, Any] = {"name": one.name}
        row["transcoder"] = notes.get(f"{one.name} in place", lambda c=one: behaviour(model, asked, replaced(c)))
        row["ablated"] = notes.get(f"{one.name} removed", lambda c=one: behaviour(model, asked, removed(c)))
        results["mlps"].append(row)
        say(f"{one.name}: {row['transcoder']['p_difference']:.3f}, without {row['ablated']['p_difference']:.3f}")
    together = [edit for one in coders for edit in replaced(one)]
    results["all"] = notes.get("all in place", lambda: behaviour(model, asked, together))
    without = [edit for one in coders for edit in removed(one)]
    results["none"] = notes.get("all removed", lambda: behaviour(model, asked, without))
    results["carriers"] = notes.get("carriers", lambda: carriers(model, coders, asked, plan))
    by_layer = {int(one.writes.split(".")[1]): one for one in coders}
    strongest = results["carriers"]["on_decade"][0]
    coder = by_layer[strongest["layer"]]
    results["words"] = notes.get("words", lambda: words(model, coder, strongest["index"], plan))
    results["by_decade"] = notes.get("by decade", lambda: by_decade(model, coder, strongest["index"], asked))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the analysis from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/greater_than"), help="folder of the report")
    parser.add_argument("--transcoders", nargs="*", default=[f"transcoder-{layer}" for layer in range(10, 16)])
    parser.add_argument("--prompts", type=int, default=Plan.prompts)
    parser.add_argument("--graphs", type=int, default=Plan.graphs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--summary", type=Path, help="also write the figures worth citing to this JSON file")
    asked = parser.parse_args(arguments)
    plan = Plan(asked.prompts, asked.graphs, seed=asked.seed)
    coders: Any = [wb.load_dictionary(name) for name in asked.transcoders]
    results = experiment(wb.load_model(), coders, plan, asked.out)
    write_json(asked.out / "results.json", results)
    if asked.summary:
        write_json(asked.summary, results, indent=1)
    say(f"Written: {write_page(asked.out, results, PUBLISHED)}")


if __name__ == "__main__":
    main()

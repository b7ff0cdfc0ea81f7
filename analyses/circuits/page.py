"""The report on circuits: tables and figures."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from analyses.shared.report import Cell, Page, table
from workbench.figures.circuits import head_maps, roc_curves

LABELS = {
    "attribution": "attribution patching",
    "discrete": "discrete SAE",
    "discrete, centred": "discrete SAE, each head's mean subtracted",
    "discrete, exchanged": "discrete SAE, positive and corrupted prompts exchanged",
    "distance": "distance of the mean outputs, nothing learned",
    "mean": "mean ablation",
    "zero": "zero ablation",
    "resample": "resample ablation",
}


def write_page(folder: Path, results: dict[str, Any]) -> Path:
    """Write `index.html` and the figures' JSON."""
    source = results["provenance"]
    page = Page(
        folder,
        "Which heads do the work",
        "A small autoencoder gives every head of a model one integer code for each prompt; heads with codes that occur "
        "only where the task can be done form its circuit (O'Neill and Bui 2024). How well does this find the heads "
        "that matter when each is patched alone, beside gradients, and where the circuit is set by hand?",
    )
    _overview(page, results)
    _by_hand(page, results["by hand"])
    for name, task in results["tasks"].items():
        _task(page, name, task, source["plan"])
    return page.write({key: value for key, value in source.items() if key != "plan"} | source["plan"])


def _overview(page: Page, results: dict[str, Any]) -> None:
    page.section(
        "In short",
        "ROC AUC of heads against the tenth of all heads with the largest effect when patched; 10 pairs of prompts, "
        "mean ± standard deviation over seeds, which change prompts and chance. The published values are for GPT-2 "
        "small (docstrings: a model of four layers) against circuits found by people: not the same quantity.",
    )
    rows = []
    for name, task in results["tasks"].items():
        ten = {row["method"]: row for row in task["judged"]["nodes"] if row["pairs"] == 10}
        paper = [row for row in task["judged"]["nodes"] if row["method"] == "discrete" and row["pairs"] > 50]
        behind, time = task["judged"]["behind attribution"], task["judged"]["of patching's time"]
        reached = behind <= 0.05 and time <= 0.2
        rows.append(
            [
                name,
                *(_auc(ten[method]) for method in ("discrete", "discrete, centred", "attribution", "distance")),
                _auc(paper[0]) if paper else "",
                f"{time:.2f}",
                Cell(f'<span class="{"yes" if reached else "no"}">{"yes" if reached else "no"}</span>'),
                f"{task['published']['discrete SAE']:g}",
            ]
        )
    columns = ["task", "discrete SAE", "centred", "attribution", "distance", "the paper's 250 pairs", "time"]
    columns += ["near attribution in a fifth of the time", "published"]
    page.add(table(columns, rows))
    page.add(
        '<p class="note">Time: processor seconds of the discrete SAE as a share of those of patching every head on as '
        "many pairs. Near: its AUC is at most 0.05 below attribution patching's.</p>"
    )


def _by_hand(page: Page, rows: list[dict[str, Any]]) -> None:
    page.section(
        "Circuits set by hand",
        "Two small models whose weights are set by hand: 2 heads of 16 copy a name that followed before, 3 of 16 and "
        "an MLP compare digits. Busy heads attend to the same words as the circuit; nothing reads their output. Mean "
        "ROC AUC over the seeds, 10 pairs.",
    )
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["kind"], row["busy"]), []).append(row)
    listed = []
    for (kind, busy), some in cases.items():
        means = [
            f"{sum(one[what]['auc'] for one in some) / len(some):.3f}"
            for what in ("discrete", "patch", "attribution", "discrete edges", "eap edges")
        ]
        accuracy = sum(one["accuracy"] for one in some) / len(some)
        listed.append([kind, busy, f"{accuracy:.0%}", *means])
    columns = ["circuit", "busy heads", "accuracy", "discrete SAE", "patching", "attribution patching"]
    page.add(table([*columns, "discrete SAE: edges", "EAP: edges"], listed))


def _task(page: Page, name: str, task: dict[str, Any], plan: dict[str, Any]) -> None:
    done, alone, without = task["done"], task["kept"]["alone"], task["kept"]["without"]
    positive, corrupted = (f"<code>{html.escape(one)}</code>" for one in task["example"])
    right, wrong = (html.escape(", ".join(map(repr, task[key]))) for key in ("right", "wrong"))
    page.section(
        name[0].upper() + name[1:],
        f"{html.escape(task['about'])} Such as {positive}, right {right}, compared with {wrong}; "
        f"corrupted {corrupted}.",
        f"The model is right in {done['accuracy']:.0%} of {done['examples']} prompts, {done['chance']:.0%} by chance; "
        f"the right answers are {done['logit_difference']:.2f} nats likelier than the wrong ones, "
        f"{done['corrupted']:.2f} on corrupted prompts. With all heads but the circuit's {len(task['circuit'])} at "
        f"their means {alone['logit_difference']:.2f} ({alone['accuracy']:.0%} right), with the circuit's at theirs "
        f"{without['logit_difference']:.2f} ({without['accuracy']:.0%} right).",
    )
    first = {trial["method"]: trial["heads"] for trial in reversed(task["trials"]) if trial["pairs"] == 10}
    maps = {"patching (truth)": task["patch"]["heads"], "mean ablation": task["mean"]["heads"]}
    maps |= {LABELS[method].split(",")[0]: first[method] for method in ("attribution", "discrete", "distance")}
    slug = name.replace(" ", "-")
    page.figure(
        f"{slug}-heads",
        head_maps(maps, [(layer, head) for layer, head in task["circuit"]]),
        "Scores of every head; squares mark the circuit. One seed, 10 pairs.",
    )
    page.figure(f"{slug}-roc", roc_curves(task["judged"]["curves"]), "ROC curves of the same.")
    rows = [
        [
            LABELS[row["method"]],
            row["pairs"],
            row["trials"],
            _auc(row),
            f"{row['average_precision']:.3f}",
            f"{row['precision']:.2f}",
            f"{row['recall']:.2f}",
            f"{row['chosen']:.0f}",
            f"{row['cpu']:.1f}",
        ]
        for row in sorted(task["judged"]["nodes"], key=lambda row: (list(LABELS).index(row["method"]), row["pairs"]))
    ]
    columns = ["method", "pairs", "trials", "ROC AUC", "average precision", "precision", "recall", "chosen"]
    page.add("<h3>Heads</h3>", table([*columns, "processor seconds"], rows))
    page.add(f"<p>{_why(task)}</p>")
    page.add(
        f'<p class="note">Patching every head took {task["patch"]["cpu"]:.0f} processor seconds for '
        f"{task['patch']['examples']} pairs. Precision and recall: of as many heads as the circuit has, with all that "
        "score the same as the last of them.</p>"
    )
    patched = task["edges"]["patched"]
    rows = [
        [row["method"], row["trials"], _auc(row), f"{row['average_precision']:.3f}", f"{row['precision']:.2f}",
         f"{row['recall']:.2f}"]
        for row in task["judged"]["edges"]
    ]  # fmt: skip
    page.add("<h3>Edges</h3>", table(["method", "trials", "ROC AUC", "average precision", "precision", "recall"], rows))
    page.add(
        f'<p class="note">Against the strongest tenth of {len(patched["effects"])} edges that were patched one by one '
        f"on {plan['edge_prompts']} pairs ({patched['cpu']:.0f} processor seconds).</p>"
    )


def _why(task: dict[str, Any]) -> str:
    """How much the counts of codes depend on the task, as a paragraph."""
    ten = {row["method"]: row for row in task["judged"]["nodes"] if row["pairs"] == 10}
    own, other = ten["discrete"], ten["discrete, exchanged"]
    return (
        f"With 10 pairs {own['missed']:.0%} of the circuit's heads have no code that occurs on positive prompts only, "
        f"and {own['false']:.0%} of the other heads have at least one. With positive and corrupted prompts exchanged, "
        f"so that codes of the corrupted ones are counted, the AUC is {other['auc']:.3f} instead of {own['auc']:.3f}: "
        "the nearer these are, the more the score measures how varied a head's codes are, and the less its role in "
        f"the task. The distance of the mean outputs, from the same activations, has {ten['distance']['auc']:.3f}."
    )


def _auc(row: dict[str, Any]) -> str:
    spread = f" ± {row['deviation']:.3f}" if row["trials"] > 1 else ""
    return f"{row['auc']:.3f}{spread}"

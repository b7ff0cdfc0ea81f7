"""Tamkin, Taufeeque, Goodman, "Codebook Features" (2023, arXiv 2310.17230), section 3: a language whose truth is known.

Small transformers learn the language of a random finite state machine: one plain and three that run through codebooks.
How much do the codebooks cost, do their codes stand for states, and does forcing a state's codes make the model
continue from that state?
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from analyses.shared.report import Notes, provenance, say
from analyses.shared.study import Outcome, Study
from analyses.tokfsm.codes import dead_codes, divergences, state_codes
from analyses.tokfsm.page import write_page
from analyses.tokfsm.plan import CONTEXT, ORDER, SMALLEST, Plan
from analyses.tokfsm.rows import published_rows
from analyses.tokfsm.training import build_indexes, train
from workbench.corpus import TokenBatch
from workbench.synthetic import StateCounts, count_codes, force_state, next_states

FORMAT = 2
"""Format of the notes; a new number measures everything anew."""


@torch.inference_mode()
def language(model: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, plan: Plan) -> dict[str, float]:
    """Loss in nats and accuracy of the next token, and accuracy of the next state, on `measured` tokens and `walks`."""
    losses, right = [], []
    batches: list[TokenBatch] = list(machine.batches(model, CONTEXT, 64, plan.measured, seed=plan.seed + 999))
    for batch in batches:
        logits, targets = model(batch.tokens)[:, 1:-1], batch.tokens[:, 2:]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        right.append((logits.argmax(-1) == targets).double().mean())
    return {
        "loss": float(torch.stack(losses).mean()),
        "accuracy": float(torch.stack(right).mean()),
        "transition": machine.transition_accuracy(model, plan.walks, CONTEXT, plan.seed + 5),
    }


def sample_of(plan: Plan) -> Plan:
    """The plan of a small sample, which a test repeats."""
    return replace(plan, measured=8192, walks=64)


def steering(
    model: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, counted: Sequence[StateCounts], plan: Plan
) -> dict[str, Any]:
    """Shares of the next state's probability on the edges of a target state, whose codes are forced on a walk's last.

    The codes are the most frequent ones of the target state in all codebooks, also behind it while the next state is
    being written. The baseline forces as many codes drawn at random from the same codebooks. `target` and `own` are the
    probabilities on the edges of the target and of the walk's last state, `sampled` the share of samples on the
    target's.
    """
    chance = torch.Generator().manual_seed(plan.seed + 77)
    rows: dict[str, list[list[float]]] = {kind: [] for kind in ("plain", "forced", "random")}
    walks = machine.walk(plan.pairs, 12, [machine.seed, 23, plan.seed])
    targets = torch.randint(machine.states, (plan.pairs,), generator=chance)

    def drawn(edit: wb.Force) -> wb.Force:
        book: Any = edit.feature.source
        return replace(edit, feature=book.drawn_like(edit.feature.index, chance))

    for state in range(machine.states):
        own = walks[targets == state]
        if not len(own):
            continue
        forced = force_state(model, machine, counted, state, own.shape[1])
        kinds: dict[str, Any] = {"plain": (), "forced": forced}
        kinds["random"] = lambda written, forced=forced: [drawn(edit) for edit in forced(written)]
        for kind, edits in kinds.items():
            following = next_states(model, machine, own, edits)
            on_target = (following * machine.follows[state]).sum(1)
            on_own = (following * machine.follows[own[:, -1]]).sum(1)
            sampled = following.clamp(min=0).multinomial(1, generator=chance)[:, 0]
            hits = machine.follows[state][sampled].double()
            rows[kind] += torch.stack([on_target, on_own, hits], 1).tolist()
    means = {kind: torch.tensor(shares).mean(0).tolist() for kind, shares in rows.items()}
    return {kind: dict(zip(("target", "own", "sampled"), values, strict=True)) for kind, values in means.items()} | {
        "chance": machine.edges / machine.states
    }


def experiment(
    folder: Path, plan: Plan, machine: wb.synthetic.TokFSM, models: dict[str, wb.model.LanguageModel]
) -> dict[str, Any]:
    """All results of models of the machine's language, by name; one of them is `plain`.

    An interrupted run resumes from its notes.
    """
    plain = models["plain"]
    hashes = {name: model.hash for name, model in models.items()}
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, hashes, asdict(plan), machine.hash])
    results: dict[str, Any] = {
        "provenance": provenance(plain, plan.seed, plan=asdict(plan), machine=machine.hash),
        "models": {},
    }
    for name, model in models.items():
        say(f"Measuring {name}")
        measured = {
            "language": notes.get(f"{name} language", lambda m=model: language(m, machine, plan)),
            "sample": notes.get(f"{name} sample", lambda m=model: language(m, machine, sample_of(plan))),
        }
        if model.splices:
            counted, *later = (
                count_codes(model, machine, walks=plan.walks, written=written, seed=plan.seed + 30)
                for written in range(machine.digits)
            )
            measures: dict[str, Any] = {
                "dead": lambda c=counted: dead_codes(c),
                "state_codes": lambda m=model: state_codes(m, plain, machine, plan),
                "divergence": lambda m=model, c=counted: divergences(m, machine, c),
                "steering": lambda m=model, c=(counted, *later): steering(m, machine, c, plan),
            }
            measured |= {what: notes.get(f"{name} {what}", measure) for what, measure in measures.items()}
        results["models"][name] = measured | {"hash": model.hash}
    return results


def run(settings: Namespace) -> Outcome:
    """Train if asked to, measure, and write the report."""
    plan, machine = SMALLEST if settings.smallest else Plan(), wb.synthetic.TokFSM()
    if settings.train:
        train(machine, plan, settings.work, settings.names)
    if settings.index:
        build_indexes(wb.load_model("tokfsm-attention"), machine)
    shipped = [name for name in ORDER if f"tokfsm-{name}" in wb.interventions.bundled_models()]
    models = {name: wb.load_model(f"tokfsm-{name}") for name in (shipped[:2] if settings.smallest else shipped)}
    results = experiment(settings.out, plan, machine, models)
    return Outcome(results, results, write_page(settings.out, results))


def add_options(parser: ArgumentParser) -> None:
    """Add what is trained and indexed."""
    parser.add_argument("--index", action="store_true", help="build the feature indexes that ship with `attention`")
    parser.add_argument("--names", nargs="*", default=ORDER, help="models to train (default: all)")


STUDY = Study(run, published_rows, shared=("train", "work"), add_options=add_options)

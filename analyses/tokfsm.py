"""Tamkin, Taufeeque, Goodman, "Codebook Features" (2023, arXiv 2310.17230), section 3: a language whose truth is known.

Small transformers learn the language of a random finite state machine, one as it is and three that run through
codebooks. How much do the codebooks cost, do their codes stand for states, and does forcing a state's codes make the
model go on as if it were in that state?

    python analyses/tokfsm.py --out reports/tokfsm              # from the models that ship
    python analyses/tokfsm.py --out reports/tokfsm --train      # train them first, or go on doing so
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from report import Notes, provenance, say, write_json
from tokfsm_page import write_page
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import workbench as wb
from workbench.corpus import TokenBatch
from workbench.interventions.opening import BUNDLED
from workbench.synthetic import StateCounts, capture_at_states, count_codes, force_state, next_states

FORMAT = 2
"""Of the notes; a new number measures everything anew."""
LAYERS, HEADS, D_MODEL, CONTEXT = 4, 4, 128, 128
PUBLISHED = {
    "plain": (1.179, 46.36, 96.77),
    "attention": (1.18, 46.33, 96.39),
    "both": (1.269, 45.27, 63.65),
}
"""The paper's loss, accuracy of the next token, and of the next state, in %."""
LEAST_RECALL = 0.01
"""Codes that are active on a smaller share of a state's visits are not taken for a code of it."""
ORDER = ["plain", "attention", "mlp", "both"]
"""The models, as the table has them."""


@dataclass(frozen=True)
class Plan:
    """What is trained and measured."""

    plain_tokens: int = 30_000_000
    book_tokens: int = 1_500_000
    batch: int = 16
    lr: float = 1e-3
    book_lr: float = 1e-4
    """Of the model that learns together with its codebooks."""
    frozen: tuple[str, ...] = ("mlp", "both")
    """Models of which the codebooks alone learn. Else the MLPs' outputs, whose length cosine similarity does not see,
    grow and run away from their codes: with book_lr the loss rises from 1.23 to 1.30 in 600,000 tokens."""
    frozen_tokens: int = 600_000
    head_codes: int = 2_000
    """Codes of each head."""
    mlp_codes: int = 10_000
    """Codes of each MLP output."""
    measured: int = 131_072
    """Tokens of the loss and of accuracy."""
    walks: int = 512
    pairs: int = 1_000
    """Of states, for steering."""
    seed: int = 0


def untrained(machine: wb.synthetic.TokFSM, seed: int) -> wb.model.LanguageModel:
    """The paper's sizes: 4 layers of 4 heads, width 128, MLPs of 512, rotary positions."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=machine.n_vocab,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * D_MODEL,
        max_position_embeddings=CONTEXT,
        bos_token_id=machine.bos,
        eos_token_id=machine.bos,
        architectures=["GPTNeoXForCausalLM"],
    )
    return wb.load_model(GPTNeoXForCausalLM(config), tokenizer=machine.tokenizer())


def codebooks(which: str, plan: Plan) -> dict[str, wb.Codebook]:
    """Fresh codebooks by hook point: on every head, on every MLP's output, or on both."""
    books: dict[str, wb.Codebook] = {}
    for layer in range(LAYERS):
        if which in ("attention", "both"):
            books[f"blocks.{layer}.attn.hook_z"] = wb.Codebook(
                D_MODEL, plan.head_codes, groups=HEADS, name=f"attention-{layer}", seed=layer
            )
        if which in ("mlp", "both"):
            books[f"blocks.{layer}.hook_mlp_out"] = wb.Codebook(
                D_MODEL, plan.mlp_codes, name=f"mlp-{layer}", seed=100 + layer
            )
    return books


def train(machine: wb.synthetic.TokFSM, plan: Plan, work: Path, names: Sequence[str]) -> None:
    """Train the models, or go on, and put them where they ship."""
    start = untrained(machine, plan.seed)
    how: dict[str, Any] = {"batch": plan.batch, "context": CONTEXT, "decay": 0.2, "seed": plan.seed}
    plain = wb.training.fine_tune(
        start, machine, tokens=plan.plain_tokens, lr=plan.lr, folder=work / "plain", log=_teller("plain"), **how
    )
    made = {"plain": plain}
    for name in names:
        frozen = name in plan.frozen
        if name != "plain":
            made[name] = wb.training.fine_tune(
                plain,
                machine,
                codebooks(name, plan),
                tokens=plan.frozen_tokens if frozen else plan.book_tokens,
                lr=plan.lr if frozen else plan.book_lr,
                frozen=frozen,
                folder=work / name,
                log=_teller(name),
                **how,
            )
        made[name].about |= {"machine": asdict(machine)}
        wb.interventions.save_model(made[name], BUNDLED / f"tokfsm-{name}", half=True)


def _teller(name: str) -> Any:
    def tell(line: Any) -> None:
        if line["step"] % 100 == 0 or line["step"] == 1:
            said = f"{line['tokens']:,} tokens, {line['tokens_per_second']:,.0f} tokens/s, loss {line['ce']:.4f}"
            say(f"{name}: {said}, accuracy {line['accuracy']:.4f}, error {line['error']:.3f}, dead {line['dead']:.3f}")

    return tell


# Measures


@torch.inference_mode()
def language(model: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, plan: Plan) -> dict[str, float]:
    """Loss and accuracy of the next token, and of the next state."""
    losses, right = [], []
    batches: list[TokenBatch] = list(machine.batches(model, CONTEXT, 64, plan.measured, seed=plan.seed + 999))
    for batch in batches:
        logits, wanted = model(batch.tokens)[:, 1:-1], batch.tokens[:, 2:]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten()))
        right.append((logits.argmax(-1) == wanted).double().mean())
    return {
        "loss": float(torch.stack(losses).mean()),
        "accuracy": float(torch.stack(right).mean()),
        "transition": machine.transition_accuracy(model, plan.walks, CONTEXT, plan.seed + 5),
    }


def dead_codes(counted: StateCounts) -> dict[str, float]:
    """Share of each place's codes that no state ever has."""
    return {point: float((counts.sum(1) == 0).double().mean()) for point, counts in counted.counts.items()}


def state_codes(
    model: wb.model.LanguageModel, plain: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, plan: Plan
) -> dict[str, Any]:
    """For each state the code that is most precise, and the neuron that is most precise at the same recall.

    Both are chosen on some walks and judged on others.
    """
    chosen_on, judged_on = (count_codes(model, machine, walks=plan.walks, seed=plan.seed + n) for n in (31, 32))
    rows = []
    best: dict[int, tuple[float, float, str, int]] = {}
    for point in chosen_on.counts:
        precision, recall = chosen_on.precision(point), chosen_on.recall(point)
        score = torch.where(recall > LEAST_RECALL, precision + 1e-6 * recall, -1.0)
        for state, (value, code) in enumerate(zip(*score.max(0), strict=True)):
            found = (float(value), float(recall[code, state]), point, int(code))
            best[state] = max(best.get(state, (-2.0, 0.0, "", 0)), found)
    recalls = torch.tensor([best[state][1] for state in range(machine.states)])
    neurons = _neurons(plain, machine, plan, recalls)
    by_place: dict[str, list[float]] = {}
    for state in range(machine.states):
        _, _, point, code = best[state]
        precision = float(judged_on.precision(point)[code, state])
        recall = float(judged_on.recall(point)[code, state])
        rows.append({"state": state, "hook_point": point, "code": code, "precision": precision, "recall": recall})
        rows[-1] |= {"neuron": neurons[state]}
    for point, counts in judged_on.counts.items():
        groups = model.splices[point].groups  # type: ignore[attr-defined]
        precision = judged_on.precision(point).amax(1).view(groups, -1)
        active = counts.sum(1).view(groups, -1).double()
        weighted = (precision * active).sum(1) / active.sum(1).clamp(min=1)
        by_place[point] = weighted.tolist()
    mean = sum(row["precision"] for row in rows) / len(rows)
    of_neurons = sum(row["neuron"]["precision"] for row in rows) / len(rows)
    return {"precision": mean, "neuron_precision": of_neurons, "states": rows, "by_place": by_place}


def _neurons(
    plain: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, plan: Plan, recalls: Tensor
) -> list[dict[str, Any]]:
    """For each state the neuron of the plain model, and of either sign, that is most precise at a recall."""
    points = [plain.network.neuron_hook_point(layer, "post").name for layer in range(LAYERS)]

    def read(seed: int) -> tuple[Tensor, Tensor]:
        parts = list(capture_at_states(plain, machine, points, plan.walks, seed=seed))
        values = torch.cat([torch.cat([found[point] for point in points], 1) for _, found in parts])
        return torch.cat([states for states, _ in parts]), values  # [n], [n, neurons]

    states, values = read(plan.seed + 41)
    later, others = read(plan.seed + 42)
    columns = {sign: (sign * values).T.contiguous().sort(1).values for sign in (1, -1)}  # [neurons, n], ascending
    found = []
    for state in range(machine.states):
        inside = states == state
        best = (-1.0, 0, 0.0, 1)
        for sign in (1, -1):
            threshold = (sign * values[inside]).quantile(1 - recalls[state].clamp(0, 1), dim=0)  # [neurons]
            active = len(values) - torch.searchsorted(columns[sign], threshold[:, None])[:, 0]  # [neurons]
            hits = (sign * values[inside] >= threshold).sum(0)
            precision = hits.double() / active.clamp(min=1)
            value, neuron = precision.max(0)
            best = max(best, (float(value), int(neuron), float(threshold[neuron]), sign))
        _, neuron, limit, sign = best
        active = sign * others[:, neuron] >= limit
        hits = int((active & (later == state)).sum())
        layer, index = divmod(neuron, others.shape[1] // LAYERS)
        found.append(
            {
                "neuron": f"neurons.{layer}.post:{index}",
                "sign": sign,
                "precision": hits / max(int(active.sum()), 1),
                "recall": hits / max(int((later == state).sum()), 1),
            }
        )
    return found


def divergences(
    model: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, counted: StateCounts
) -> dict[str, dict[str, float]]:
    """Jensen–Shannon divergence (bits) of what follows two states: of pairs that share a code, and of all pairs."""
    truth = machine.follows.double() / machine.edges
    middle = (truth[:, None] + truth[None]) / 2

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp(min=1e-12).log2()).sum(-1)

    js = entropy(middle) - (entropy(truth)[:, None] + entropy(truth)[None]) / 2  # [states, states]
    above = torch.ones_like(js).triu(1).bool()
    found = {}
    for point, counts in counted.counts.items():
        book = model.splices[point]
        groups = book.groups  # type: ignore[attr-defined]
        modal = counts.view(groups, -1, machine.states).argmax(1)  # [groups, states]
        shared = (modal[:, :, None] == modal[:, None]) & above  # [groups, states, states]
        found[point] = {
            "shared": float(js.expand_as(shared)[shared].mean()) if bool(shared.any()) else float("nan"),
            "random": float(js[above].mean()),
            "pairs": int(shared.sum()),
        }
    return found


def steering(
    model: wb.model.LanguageModel, machine: wb.synthetic.TokFSM, counted: Sequence[StateCounts], plan: Plan
) -> dict[str, Any]:
    """Force another state's codes on a walk's last state: how much of the next state's probability is on whose edges.

    The codes are those that are active most often on the other state, in all codebooks, and behind it while the next
    state is being written; the rival is as many codes drawn at random from the same codebooks.
    """
    chance = torch.Generator().manual_seed(plan.seed + 77)
    rows: dict[str, list[list[float]]] = {kind: [] for kind in ("plain", "forced", "random")}
    walks = machine.walk(plan.pairs, 12, [machine.seed, 23, plan.seed])
    targets = torch.randint(machine.states, (plan.pairs,), generator=chance)

    def drawn(edit: wb.Force) -> wb.Force:
        book: Any = edit.feature.source
        return replace(edit, feature=book.drawn_like(edit.feature.index, chance))

    for state in range(machine.states):
        mine = walks[targets == state]
        if not len(mine):
            continue
        forced = force_state(model, machine, counted, state, mine.shape[1])
        kinds: dict[str, Any] = {"plain": (), "forced": forced}
        kinds["random"] = lambda written, forced=forced: [drawn(edit) for edit in forced(written)]
        for kind, edits in kinds.items():
            found = next_states(model, machine, mine, edits)
            on_target = (found * machine.follows[state]).sum(1)
            on_own = (found * machine.follows[mine[:, -1]]).sum(1)
            sampled = found.clamp(min=0).multinomial(1, generator=chance)[:, 0]
            hits = machine.follows[state][sampled].double()
            rows[kind] += torch.stack([on_target, on_own, hits], 1).tolist()
    means = {kind: torch.tensor(found).mean(0).tolist() for kind, found in rows.items()}
    return {kind: dict(zip(("target", "own", "sampled"), values, strict=True)) for kind, values in means.items()} | {
        "chance": machine.edges / machine.states
    }


def experiment(
    folder: Path, plan: Plan, machine: wb.synthetic.TokFSM, models: dict[str, wb.model.LanguageModel]
) -> dict[str, Any]:
    """Everything that is measured of models of the machine's language, one of which is "plain"."""
    plain = models["plain"]
    hashes = {name: model.hash for name, model in models.items()}
    notes = Notes(folder / "work" / "notes.jsonl", [FORMAT, hashes, asdict(plan), machine.hash])
    results: dict[str, Any] = {
        "provenance": provenance(plain, plan.seed, plan=asdict(plan), machine=machine.hash),
        "models": {},
    }
    for name, model in models.items():
        say(f"Measuring {name}")
        found = {"language": notes.get(f"{name} language", lambda m=model: language(m, machine, plan))}
        if model.splices:
            counted, *later = (
                count_codes(model, machine, walks=plan.walks, written=written, seed=plan.seed + 30)
                for written in range(machine.digits)
            )
            made: dict[str, Any] = {
                "dead": lambda c=counted: dead_codes(c),
                "state_codes": lambda m=model: state_codes(m, plain, machine, plan),
                "divergence": lambda m=model, c=counted: divergences(m, machine, c),
                "steering": lambda m=model, c=(counted, *later): steering(m, machine, c, plan),
            }
            found |= {what: notes.get(f"{name} {what}", make) for what, make in made.items()}
        results["models"][name] = found | {"hash": model.hash}
    return results


def index(model: wb.model.LanguageModel, machine: wb.synthetic.TokFSM) -> None:
    """Build a feature index of each of a model's codebooks, beside it on disk."""
    books: Any = model.splices.values()
    folder = BUNDLED / "tokfsm-attention" / "dictionaries"
    wanted = {folder / str(number) / "index": book for number, book in enumerate(books)}
    wb.index.build_indexes(model, wanted, machine.corpus(texts=200), context=128)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the analysis from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/tokfsm"), help="folder of the report")
    parser.add_argument("--train", action="store_true", help="train the models, or go on doing so, first")
    parser.add_argument("--index", action="store_true", help="build the feature indexes that ship with `attention`")
    parser.add_argument("--names", nargs="*", default=ORDER, help="models to train")
    parser.add_argument("--work", type=Path, default=Path("runs/tokfsm"), help="checkpoints")
    parser.add_argument("--summary", type=Path, help="also write the figures worth citing to this JSON file")
    asked = parser.parse_args(arguments)
    plan, machine = Plan(), wb.synthetic.TokFSM()
    if asked.train:
        train(machine, plan, asked.work, asked.names)
    if asked.index:
        index(wb.load_model("tokfsm-attention"), machine)
    shipped = [name for name in ORDER if f"tokfsm-{name}" in wb.interventions.bundled_models()]
    results = experiment(asked.out, plan, machine, {name: wb.load_model(f"tokfsm-{name}") for name in shipped})
    write_json(asked.out / "results.json", results)
    if asked.summary:
        write_json(asked.summary, results, indent=1)
    say(f"Written: {write_page(asked.out, results, PUBLISHED)}")


if __name__ == "__main__":
    main()

"""Train the models that ship, and build their indexes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import workbench as wb
from analyses.shared.report import say
from analyses.tokfsm.plan import CONTEXT, D_MODEL, HEADS, LAYERS, Plan
from workbench.core.shipped import HOME


def untrained(machine: wb.synthetic.TokFSM, seed: int) -> wb.model.LanguageModel:
    """An untrained model of the paper's sizes: 4 layers of 4 heads, width 128, MLPs of 512, rotary positions."""
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
    """Untrained codebooks by hook point: on every head, on every MLP's output, or on both."""
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
    """Train the models, or resume, and write them to the folder of bundled models."""
    start = untrained(machine, plan.seed)
    how: dict[str, Any] = {"batch": plan.batch, "context": CONTEXT, "decay": 0.2, "seed": plan.seed}
    plain = wb.training.fine_tune(
        start, machine, tokens=plan.plain_tokens, lr=plan.lr, folder=work / "plain", log=_log_of("plain"), **how
    )
    trained = {"plain": plain}
    for name in names:
        frozen = name in plan.frozen
        if name != "plain":
            trained[name] = wb.training.fine_tune(
                plain,
                machine,
                codebooks(name, plan),
                tokens=plan.frozen_tokens if frozen else plan.book_tokens,
                lr=plan.lr if frozen else plan.book_lr,
                frozen=frozen,
                folder=work / name,
                log=_log_of(name),
                **how,
            )
        trained[name].about |= {"machine": asdict(machine)}
        wb.interventions.save_model(trained[name], HOME / "data" / "models" / f"tokfsm-{name}", half=True)


def _log_of(name: str) -> Callable[[Mapping[str, Any]], None]:
    """A log of a training that prints the first and every hundredth step."""

    def log(line: Mapping[str, Any]) -> None:
        if line["step"] % 100 == 0 or line["step"] == 1:
            speed = f"{line['tokens']:,} tokens, {line['tokens_per_second']:,.0f} tokens/s, loss {line['ce']:.4f}"
            say(f"{name}: {speed}, accuracy {line['accuracy']:.4f}, error {line['error']:.3f}, dead {line['dead']:.3f}")

    return log


def build_indexes(model: wb.model.LanguageModel, machine: wb.synthetic.TokFSM) -> None:
    """Build a feature index of each codebook of `tokfsm-attention`, beside the codebook on disk."""
    books: Any = model.splices.values()
    folder = HOME / "data" / "models" / "tokfsm-attention" / "dictionaries"
    folders = {folder / str(number) / "index": book for number, book in enumerate(books)}
    wb.index.build_indexes(model, folders, machine.corpus(texts=200), context=128)

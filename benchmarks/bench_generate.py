"""Greedy generation of 64 tokens against Hugging Face's own `generate` on the plain model, and `compare`."""

from __future__ import annotations

import torch
from timing import in_turns, report

import workbench as wb
from workbench.model.default_model import read_default

NEW = 64
PROMPT = "The quick brown dog ran to the store, and then it"


def main() -> None:
    """Print the ratios for batches of 1 and 16."""
    opened = read_default(torch.device("cpu"), torch.float32)
    module, tokenizer = opened.module, opened.tokenizer
    module.eval()
    model = wb.load_model(module, tokenizer=tokenizer)
    clamps = [wb.Clamp(wb.Feature(f"neurons.{3 * n}.gate", 100 + n), 1.0) for n in range(10)]
    tokens = model.to_tokens(PROMPT)
    for batch in (1, 16):
        rows = tokens.expand(batch, -1).contiguous()
        mask = torch.ones_like(rows)
        prompts = [PROMPT] * batch

        def rival(rows: torch.Tensor = rows, mask: torch.Tensor = mask) -> object:
            with torch.inference_mode():
                return module.generate(
                    rows, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
                )

        times = in_turns(
            {
                "Hugging Face generate": rival,
                "wb.generate": lambda prompts=prompts: model.generate_batch(prompts, NEW, stop=False),
                "wb.generate, 10 clamped neurons": lambda prompts=prompts: model.generate_batch(
                    prompts, NEW, stop=False, interventions=clamps
                ),
            }
        )
        wanted = "at least 1.0 without edits, 0.9 with 10 clamps"
        report(f"\nGreedy generation, batch {batch}, {NEW} tokens", times, "Hugging Face generate", wanted)

    weights = [p for p in module.parameters() if p.ndim == 2]
    inputs = {weight.shape[1]: torch.randn(1, weight.shape[1]) for weight in weights}

    def read_weights() -> None:
        for _ in range(NEW):
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    times = in_turns(
        {
            "weights times one vector per token": read_weights,
            "wb.generate": lambda: model.generate(PROMPT, NEW, stop=False),
            "wb.compare": lambda: wb.compare(model, PROMPT, clamps[:1], NEW, stop=False),
            "wb.compare with a control": lambda: wb.compare(model, PROMPT, clamps[:1], NEW, stop=False, control=True),
        }
    )
    report("\nThe physical limit", times, "weights times one vector per token")
    print(
        f"\ncompare takes {times['wb.compare'] / times['wb.generate']:.2f} times one generation  (wanted: at most 1.35)"
    )


if __name__ == "__main__":
    main()

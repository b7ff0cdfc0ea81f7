"""Weights set by hand, head by head, for the models of `ground_truth.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.circuits.tasks import Task
from workbench.core.display import Tabular, cells
from workbench.interventions.opening import load_model
from workbench.model.language_model import LanguageModel

LAYERS, HEADS, D_HEAD = 2, 8, 32
D_MODEL = HEADS * D_HEAD
CONTEXT = 16
CONSTANT = 1000.0
"""The value of two entries of the residual stream, one with either sign."""
NORM = CONSTANT * math.sqrt(2 / D_MODEL)
"""The number that the norms divide by."""
CIRCUIT_SCALE, OTHER_SCALE = 100.0, 10.0
"""Sizes of the outputs of the circuit's heads and of the others. In the mean over positions the circuit's outputs have
norms from 11 to 33 and the others' about 10, which is the range of SmolLM2-135M's late layers."""
SCORE_MARGIN = 30.0
"""The attention score of a matching key above that of other keys, before softmax."""
BOS = "<s>"
DIGITS = list("0123456789")


@dataclass(frozen=True)
class GroundTruth(Tabular):
    """A model with a known circuit, and its task."""

    model: LanguageModel
    heads: Tensor
    """Bool `[layer, head]`: the circuit."""
    edges: Tensor
    """Bool `[layer, head, layer, head]`."""
    task: Callable[[int, int], Task]
    """From a number of examples and a seed to the task."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each head."""
        return cells(("layer", "head"), member=self.heads)

    def _facts(self) -> Mapping[str, object]:
        return {"model": self.model.name, "heads": self.heads.nonzero().tolist()}


class ModelBuilder:
    """The parts of the residual stream and the weights of a model while it is built."""

    def __init__(self, words: Sequence[str], frame: Sequence[str], topic: Sequence[str], seed: int):
        from transformers import GPT2Config, GPT2LMHeadModel

        count = len(words)
        sizes = {"token": count, "position": CONTEXT, "balance": 1, "before": count, "tens": count, "out": count}
        sizes |= {"junk": 20}
        ends = torch.tensor([*sizes.values()]).cumsum(0).tolist()
        written = ends[-1] - ends[2]
        assert ends[-1] + written + 2 <= D_MODEL
        self.written = slice(ends[2], ends[-1]), slice(ends[-1], ends[-1] + written)
        self.parts = {name: range(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
        self.words, self.frame, self.topic = list(words), list(frame), list(topic)
        self.chance = torch.Generator().manual_seed(seed)
        self.free = {layer: torch.randperm(HEADS, generator=self.chance).tolist() for layer in range(LAYERS)}
        config = GPT2Config(
            vocab_size=count,
            n_positions=CONTEXT,
            n_embd=D_MODEL,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=len(DIGITS),
            activation_function="relu",
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            architectures=["GPT2LMHeadModel"],
        )
        self.module: Any = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
            wte, wpe = self.module.transformer.wte.weight, self.module.transformer.wpe.weight
            wte[:, self.parts["token"]] = torch.eye(count)
            wte[:, -2:] = torch.tensor([CONSTANT, -CONSTANT])
            wpe[:, self.parts["position"]] = torch.eye(CONTEXT)
            self.module.lm_head.weight[:, self.parts["out"]] = 10 / CIRCUIT_SCALE * NORM * torch.eye(count)

    def take_head(self, layer: int) -> tuple[int, int]:
        """The layer and number of an unused head."""
        return layer, self.free[layer].pop()

    def entries(self, part: str, words: Sequence[str] | None = None) -> list[int]:
        """The entries of the residual stream that stand for these words, or for all words, in a part."""
        places = range(len(self.words)) if words is None else map(self.words.index, words)
        return [self.parts[part][place] for place in places]

    @torch.no_grad()
    def set_head(self, place: tuple[int, int], query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        """Set a head's four matrices; query, key, value: `[d_model, d_head]`, output: `[d_head, d_model]`.

        A product of query and key of 1 gives an attention score of `SCORE_MARGIN`.
        """
        layer, head = place
        attention = self.module.transformer.h[layer].attn
        own = slice(head * D_HEAD, (head + 1) * D_HEAD)
        scale = math.sqrt(SCORE_MARGIN * math.sqrt(D_HEAD))
        for number, (matrix, factor) in enumerate(((query, scale), (key, scale), (value, 1.0))):
            attention.c_attn.weight[:, number * D_MODEL :][:, own] = factor * NORM * matrix
        attention.c_proj.weight[own] = output

    @torch.no_grad()
    def attend_to_bos(self, place: tuple[int, int], share: float) -> None:
        """Make a head attend to BOS where no key scores more than this share of `SCORE_MARGIN`."""
        layer, head = place
        attention = self.module.transformer.h[layer].attn
        last = head * D_HEAD + D_HEAD - 1
        attention.c_attn.bias[last] = 1.0
        attention.c_attn.weight[self.parts["token"][0], D_MODEL + last] = (
            share * SCORE_MARGIN * math.sqrt(D_HEAD) * NORM
        )

    def add_previous_token_head(self, place: tuple[int, int]) -> None:
        """Add a head that attends one position back and writes the token there."""
        position = self.parts["position"]
        query, key, value, output = _matrices()
        for here in range(1, CONTEXT):
            query[position[here], here - 1] = 1
        for here in range(CONTEXT):
            key[position[here], here] = 1
        for number, (read, write) in enumerate(zip(self.entries("token"), self.entries("before"), strict=True)):
            value[read, number], output[number, write] = 1, CIRCUIT_SCALE
        self.set_head(place, query, key, value, output)

    def add_induction_head(self, place: tuple[int, int], asked: Sequence[str]) -> None:
        """Add a head that attends behind the earlier occurrence of the current word and writes the word there."""
        query, key, value, output = _matrices()
        entries = [self.entries(part, asked) for part in ("token", "before", "out")]
        for number, (here, before, write) in enumerate(zip(*entries, strict=True)):
            query[here, number], key[before, number] = 1, 1 / CIRCUIT_SCALE
            value[here, number], output[number, write] = 1, CIRCUIT_SCALE
        self.set_head(place, query, key, value, output)
        self.attend_to_bos(place, 0.5)

    def add_lookback_head(self, place: tuple[int, int], back: int, words: Sequence[str]) -> None:
        """Add a head that attends some positions back and writes the previous token copied there."""
        position = self.parts["position"]
        query, key, value, output = _matrices()
        for here in range(back, CONTEXT):
            query[position[here], here - back], key[position[here - back], here - back] = 1, 1
        entries = [self.entries(part, words) for part in ("before", "tens")]
        for number, (read, write) in enumerate(zip(*entries, strict=True)):
            value[read, number], output[number, write] = 1 / CIRCUIT_SCALE, CIRCUIT_SCALE
        self.set_head(place, query, key, value, output)

    def fill_other_heads(self, circuit: Sequence[tuple[int, int]], distractors: int) -> None:
        """Make all other heads attend to some words and write a random image of them into the unread room.

        Each attends to a random half of the words that frame the task; the first `distractors` heads attend to words of
        the task instead.
        """
        others = [(layer, head) for layer in range(LAYERS) for head in range(HEADS) if (layer, head) not in circuit]
        order = torch.randperm(len(others), generator=self.chance).tolist()
        for number, which in enumerate(order):
            query, key, value, output = _matrices()
            words = self.topic if number < distractors else self.frame
            chosen = torch.randperm(len(words), generator=self.chance)[: max(1, len(words) // 2)].tolist()
            query[-2, 0] = 1 / CONSTANT  # at every position
            for one in self.entries("token", [words[place] for place in chosen]):
                key[one, 0] = 1
            value[self.entries("token")] = torch.randn(len(self.words), D_HEAD, generator=self.chance)
            room = list(self.parts["junk"])
            image = torch.randn(D_HEAD, len(room), generator=self.chance) / math.sqrt(D_HEAD * len(room))
            output[:, room] = OTHER_SCALE * image
            self.set_head(others[which], query, key, value, output)
            self.attend_to_bos(others[which], 0.5)

    @torch.no_grad()
    def add_comparison_mlp(self, layer: int) -> None:
        """Set an MLP that reads a digit, raises all higher digits and lowers all lower ones."""
        mlp = self.module.transformer.h[layer].mlp
        for number, entry in enumerate(self.entries("tens", DIGITS)):
            mlp.c_fc.weight[entry, number] = NORM / (2 * CIRCUIT_SCALE)  # two heads write it
            for other, write in enumerate(self.entries("out", DIGITS)):
                mlp.c_proj.weight[number, write] = CIRCUIT_SCALE * (float(other > number) - float(other < number))

    def finish(self, circuit: Sequence[tuple[int, int]], task: Callable[[int, int], Task]) -> GroundTruth:
        """The opened model with its circuit; everything written sums to zero, so that the norms subtract no mean."""
        transformer, (here, mirror) = self.module.transformer, self.written
        with torch.no_grad():
            for weight in (transformer.wte.weight, transformer.wpe.weight):
                weight[:, self.parts["balance"][0]] = -weight.sum(1)
            for block in transformer.h:
                for weight in (block.attn.c_proj.weight, block.mlp.c_proj.weight):
                    weight[:, mirror] = -weight[:, here]
        heads = torch.zeros(LAYERS, HEADS, dtype=torch.bool)
        for place in circuit:
            heads[place] = True
        edges = heads[:, :, None, None] & heads
        for layer in range(LAYERS):
            edges[layer, :, : layer + 1] = False  # an edge goes up
        return GroundTruth(load_model(self.module, tokenizer=_tokenizer(self.words)), heads, edges, task)


def _matrices() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and output of a head, all zero."""
    query, key, value = (torch.zeros(D_MODEL, D_HEAD) for _ in range(3))
    return query, key, value, torch.zeros(D_HEAD, D_MODEL)


def _tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of whole words, with BOS in front of every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=BOS))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, pad_token=BOS)

"""Small models whose weights are set by hand, so that the heads of their circuit are known and not guessed.

Both are GPT-2s of two layers of eight heads. The residual stream is cut into parts: the token and its position as
one-hot vectors, what the first layer's circuit head says of the token before, what is to be written, and room in which
the other heads write what nobody reads; all that heads write is written once more with the other sign. A large constant
makes the norms divide by nearly the same number everywhere, so that every part of the model can be worked out on paper.
The other heads are not idle: they look at the words that frame the task and write a random image of them; a busy one
looks at the words of the task itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.circuits.tasks import Task
from workbench.interventions.opening import load_model
from workbench.model.language_model import LanguageModel

LAYERS, HEADS, D_HEAD = 2, 8, 32
D_MODEL = HEADS * D_HEAD
CONTEXT = 16
CONSTANT = 1000.0
"""What is in two entries of the residual stream, with either sign."""
NORM = CONSTANT * math.sqrt(2 / D_MODEL)
"""What the norms divide by."""
LOUD, ASIDE = 100.0, 10.0
"""How much the circuit's heads write where they write, and the others. In the mean over positions the circuit's outputs
are 11 to 33 long and the others' about 10, which is the range of SmolLM2-135M's late layers."""
SURE = 30.0
"""By how much a head that has found its key scores it above the others, before softmax."""
BOS = "<s>"
NAMES = ["Ann", "Bob", "Cat", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Lee"]
FRAMES = ["so", "then", "now", "once", "well", "oh"]
NOUNS = ["war", "trip", "trial", "reign", "feud", "show"]
CENTURIES = ["13", "15", "16", "17"]
DIGITS = list("0123456789")


@dataclass(frozen=True)
class HandMade:
    """A model with a known circuit, and its task."""

    model: LanguageModel
    heads: Tensor
    """Bool `[layer, head]`: the circuit."""
    edges: Tensor
    """Bool `[layer, head, layer, head]`."""
    task: Callable[[int, int], Task]
    """Makes the task: number of examples, seed."""


def induction_model(seed: int = 0, busy: int = 0) -> HandMade:
    """A model that goes on as before: `so Ann Bob now Cat Dan oh Ann` → `Bob`.

    A head of the first layer copies the token before; one of the second looks for the place behind the earlier
    occurrence of the present token, and writes the token there. In the corrupted prompt the earlier occurrence is
    another name.

    Args:
        seed: of where the circuit's heads are and of what the others do.
        busy: how many of the other heads look at names.
    """
    words = [BOS, *NAMES, *FRAMES]
    stream = _Stream(words, frame=FRAMES, topic=NAMES, seed=seed)
    before, induct = stream.place(0), stream.place(1)
    stream.copy_before(before)
    stream.find_behind(induct, NAMES)
    stream.fill([before, induct], busy)
    return stream.finish([before, induct], _induction_task)


def greater_than_model(seed: int = 0, busy: int = 0) -> HandMade:
    """A model of years in tokens: `war from 17 3 2 to 17` → a digit above 3.

    A head of the first layer copies the token before, which brings the tens to the last digit; two of the second look
    two positions back and fetch what was copied there, both the same; the second layer's MLP writes for all digits
    above the one that was fetched, and against all below. In the corrupted prompt the first year ends in 01.

    Args:
        seed: of where the circuit's heads are and of what the others do.
        busy: how many of the other heads look at digits.
    """
    words = [BOS, *NOUNS, "from", "to", *CENTURIES, *DIGITS]
    stream = _Stream(words, frame=[*NOUNS, *CENTURIES], topic=DIGITS, seed=seed)
    before, one, other = stream.place(0), stream.place(1), stream.place(1)
    stream.copy_before(before)
    for place in (one, other):
        stream.fetch(place, 2, DIGITS)
    stream.fill([before, one, other], busy)
    stream.compare(1)
    return stream.finish([before, one, other], _greater_than_task)


class _Stream:
    """A model in the making: which entries of the residual stream say what, and the weights so far."""

    def __init__(self, words: Sequence[str], frame: Sequence[str], topic: Sequence[str], seed: int):
        from transformers import GPT2Config, GPT2LMHeadModel

        count = len(words)
        sizes = {"token": count, "position": CONTEXT, "balance": 1, "before": count, "found": count, "out": count}
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
            self.module.lm_head.weight[:, self.parts["out"]] = 10 / LOUD * NORM * torch.eye(count)

    def place(self, layer: int) -> tuple[int, int]:
        """A head that is not used yet."""
        return layer, self.free[layer].pop()

    def entries(self, part: str, words: Sequence[str] | None = None) -> list[int]:
        """Where in the residual stream these words, or all of them, are in a part."""
        places = range(len(self.words)) if words is None else map(self.words.index, words)
        return [self.parts[part][place] for place in places]

    @torch.no_grad()
    def set_head(self, place: tuple[int, int], query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        """Set a head's four matrices; query, key, value: `[d_model, d_head]`, output: `[d_head, d_model]`.

        Queries and keys whose product is 1 score `SURE`.
        """
        layer, head = place
        attention = self.module.transformer.h[layer].attn
        own = slice(head * D_HEAD, (head + 1) * D_HEAD)
        sure = math.sqrt(SURE * math.sqrt(D_HEAD))
        for number, (matrix, factor) in enumerate(((query, sure), (key, sure), (value, 1.0))):
            attention.c_attn.weight[:, number * D_MODEL :][:, own] = factor * NORM * matrix
        attention.c_proj.weight[own] = output

    @torch.no_grad()
    def rest_at_bos(self, place: tuple[int, int], share: float) -> None:
        """Let a head look at BOS where no key scores more than this share of a sure one."""
        layer, head = place
        attention = self.module.transformer.h[layer].attn
        last = head * D_HEAD + D_HEAD - 1
        attention.c_attn.bias[last] = 1.0
        attention.c_attn.weight[self.parts["token"][0], D_MODEL + last] = share * SURE * math.sqrt(D_HEAD) * NORM

    def copy_before(self, place: tuple[int, int]) -> None:
        """A head that looks one position back and writes the token there."""
        position = self.parts["position"]
        query, key, value, output = _matrices()
        for here in range(1, CONTEXT):
            query[position[here], here - 1] = 1
        for here in range(CONTEXT):
            key[position[here], here] = 1
        for number, (read, write) in enumerate(zip(self.entries("token"), self.entries("before"), strict=True)):
            value[read, number], output[number, write] = 1, LOUD
        self.set_head(place, query, key, value, output)

    def find_behind(self, place: tuple[int, int], asked: Sequence[str]) -> None:
        """A head that looks behind the earlier occurrence of the present word and writes what is there."""
        query, key, value, output = _matrices()
        entries = [self.entries(part, asked) for part in ("token", "before", "out")]
        for number, (here, before, write) in enumerate(zip(*entries, strict=True)):
            query[here, number], key[before, number] = 1, 1 / LOUD
            value[here, number], output[number, write] = 1, LOUD
        self.set_head(place, query, key, value, output)
        self.rest_at_bos(place, 0.5)

    def fetch(self, place: tuple[int, int], back: int, words: Sequence[str]) -> None:
        """A head that looks some positions back and writes what is said there of the token before."""
        position = self.parts["position"]
        query, key, value, output = _matrices()
        for here in range(back, CONTEXT):
            query[position[here], here - back], key[position[here - back], here - back] = 1, 1
        entries = [self.entries(part, words) for part in ("before", "found")]
        for number, (read, write) in enumerate(zip(*entries, strict=True)):
            value[read, number], output[number, write] = 1 / LOUD, LOUD
        self.set_head(place, query, key, value, output)

    def fill(self, circuit: Sequence[tuple[int, int]], busy: int) -> None:
        """All other heads look at some words and write a random image of them into the room that nobody reads.

        Of the words that frame the task each looks at a random half; the first `busy` ones look at the task's own.
        """
        others = [(layer, head) for layer in range(LAYERS) for head in range(HEADS) if (layer, head) not in circuit]
        order = torch.randperm(len(others), generator=self.chance).tolist()
        for number, which in enumerate(order):
            query, key, value, output = _matrices()
            words = self.topic if number < busy else self.frame
            chosen = torch.randperm(len(words), generator=self.chance)[: max(1, len(words) // 2)].tolist()
            query[-2, 0] = 1 / CONSTANT  # at every position
            for one in self.entries("token", [words[place] for place in chosen]):
                key[one, 0] = 1
            value[self.entries("token")] = torch.randn(len(self.words), D_HEAD, generator=self.chance)
            room = list(self.parts["junk"])
            image = torch.randn(D_HEAD, len(room), generator=self.chance) / math.sqrt(D_HEAD * len(room))
            output[:, room] = ASIDE * image
            self.set_head(others[which], query, key, value, output)
            self.rest_at_bos(others[which], 0.5)

    @torch.no_grad()
    def compare(self, layer: int) -> None:
        """An MLP that reads a digit and writes for all higher ones, against all lower ones."""
        mlp = self.module.transformer.h[layer].mlp
        for number, entry in enumerate(self.entries("found", DIGITS)):
            mlp.c_fc.weight[entry, number] = NORM / (2 * LOUD)  # two heads write it
            for other, write in enumerate(self.entries("out", DIGITS)):
                mlp.c_proj.weight[number, write] = LOUD * (float(other > number) - float(other < number))

    def finish(self, circuit: Sequence[tuple[int, int]], task: Callable[[int, int], Task]) -> HandMade:
        """The model, opened; all that is written sums to zero, so that the norms have no mean to take away."""
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
        return HandMade(load_model(self.module, tokenizer=_tokenizer(self.words)), heads, edges, task)


def _matrices() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and output of a head, all zero."""
    query, key, value = (torch.zeros(D_MODEL, D_HEAD) for _ in range(3))
    return query, key, value, torch.zeros(D_HEAD, D_MODEL)


def _tokenizer(words: Sequence[str]) -> Any:
    """Whole words, with BOS in front of every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=BOS))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    made.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BOS, pad_token=BOS)


def _induction_task(examples: int, seed: int = 0) -> Task:
    """Two pairs of names, then the first name of one of them."""
    chance = random.Random(f"induction {seed}")
    rows = []
    for _ in range(examples):
        names, frames = chance.sample(NAMES, 5), chance.sample(FRAMES, 3)
        asked = chance.choice((0, 2))

        def prompt(pairs: Sequence[str], last: str, frames: Sequence[str] = frames) -> str:
            return f"{frames[0]} {pairs[0]} {pairs[1]} {frames[1]} {pairs[2]} {pairs[3]} {frames[2]} {last}"

        other = [names[4] if place == asked else names[place] for place in range(4)]
        rows.append((prompt(names, names[asked]), prompt(other, names[asked]), [names[asked + 1]], [names[3 - asked]]))
    return Task("induction, set by hand", *map(list, zip(*rows, strict=True)), about=induction_model.__doc__ or "")


def _greater_than_task(examples: int, seed: int = 0) -> Task:
    """A noun, a year, and the century of another."""
    chance = random.Random(f"greater-than {seed}")
    rows = []
    for _ in range(examples):
        noun, century = chance.choice(NOUNS), chance.choice(CENTURIES)
        tens, ones = chance.randint(2, 7), chance.choice(DIGITS)
        positive, corrupted = (f"{noun} from {century} {end} to {century}" for end in (f"{tens} {ones}", "0 1"))
        rows.append((positive, corrupted, DIGITS[tens + 1 :], DIGITS[:tens]))
    return Task(
        "greater-than, set by hand", *map(list, zip(*rows, strict=True)), about=greater_than_model.__doc__ or ""
    )

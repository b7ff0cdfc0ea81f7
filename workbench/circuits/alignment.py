"""Pairs of prompts whose positions are aligned: by the tokens that they share, or by named spans of their texts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from workbench.circuits.errors import TaskError
from workbench.circuits.tasks import Task
from workbench.core import markup
from workbench.core.checks import checked
from workbench.core.display import Shown, Tabular
from workbench.model.language_model import LanguageModel
from workbench.model.prompts import Prompt

LAST = "last"
"""The name of the last position, which every pair has."""
Span = str | tuple[str, str]
"""A part of a text: the same in both prompts, or one in the clean and one in the corrupted prompt."""
Answer = str | int
"""A token: its text, or its id."""


@dataclass(frozen=True)
class Place(Shown):
    """Positions of the clean prompt and as many of the corrupted one, which stand for each other."""

    name: str
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    left_out: int = 0
    """Tokens at the beginning of the longer side that have no counterpart and are not exchanged."""


@dataclass(frozen=True)
class AlignedPair(Shown):
    """A clean and a corrupted prompt in tokens, and the positions that stand for each other."""

    clean: Tensor = field(repr=False)
    """Token ids, `[pos]`."""
    corrupted: Tensor = field(repr=False)
    """Token ids, `[other pos]`."""
    places: list[Place]
    answers: tuple[int, ...] = ()
    """Ids of the right next tokens; empty where the model's own answers are taken."""
    wrong: tuple[int, ...] = ()
    words: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The text of each token of both prompts."""


@dataclass(frozen=True, repr=False)
class Alignment(Tabular):
    """Pairs of prompts with the same places; printed, it shows which tokens stand for which."""

    pairs: list[AlignedPair]

    @property
    def places(self) -> list[str]:
        """The names of the places, the same in all pairs."""
        return [place.name for place in self.pairs[0].places]

    def __len__(self) -> int:
        return len(self.pairs)

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each place of each pair."""
        for number, pair in enumerate(self.pairs):
            for place in pair.places:
                yield {
                    "pair": number,
                    "place": place.name,
                    "clean": "".join(pair.words[0][one] for one in place.clean),
                    "corrupted": "".join(pair.words[1][one] for one in place.corrupted),
                    "clean positions": list(place.clean),
                    "corrupted positions": list(place.corrupted),
                    "left out": place.left_out,
                }

    def __str__(self) -> str:
        lines = []
        for row in self.records():
            sides = f"{row['clean']!r} {row['clean positions']} ↔ {row['corrupted']!r} {row['corrupted positions']}"
            more = f" ({row['left out']} left out)" if row["left out"] else ""
            lines.append(f"pair {row['pair']}, {row['place']}: {sides}{more}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Alignment: {len(self.pairs)} pairs, places {markup.words(self.places, 100)}>"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"places": self.places, "rows": list(self.records())}


@checked(TaskError)
def align_prompts(
    model: LanguageModel,
    clean: Sequence[Prompt],
    corrupted: Sequence[Prompt],
    *,
    spans: Mapping[str, Span | Sequence[Span]] | None = None,
    answers: Sequence[Answer | Sequence[Answer]] = (),
    wrong: Sequence[Answer | Sequence[Answer]] = (),
) -> Alignment:
    """Pairs of prompts in tokens, with the positions that stand for each other.

    Without spans, tokens that both prompts of a pair share stand for each other, and so do runs of other tokens between
    them where they are equally long; runs of unequal lengths are one place. Of a place of unequal lengths the last
    tokens are exchanged, as many as both have. With spans, the places are the spans in the order of the mapping, and
    the last position. Several pairs need the same places.

    Args:
        model: the model.
        clean: prompts, or their token ids `[pos]`; a single text counts as one prompt.
        corrupted: for each the other prompt.
        spans: by name, parts of the texts: one for all pairs, or a list with one for each. A part is a text, which
            occurs once in both prompts, or a pair of texts of the clean and the corrupted prompt.
        answers: for each pair the right next tokens; empty for the likeliest one behind the clean prompt.
        wrong: for each pair the wrong ones; empty for the likeliest one behind the corrupted prompt.

    Raises:
        TaskError: unlike numbers of prompts, spans or answers; a span that does not occur once; pairs without the same
            places; an answer that is not a single token.
        PromptError: a prompt that is empty or longer than the context.
    """
    sides = [[one] if isinstance(one, str) else list(one) for one in (clean, corrupted)]
    count = len(sides[0])
    if not count or len(sides[1]) != count:
        raise TaskError(f"Each clean prompt needs one corrupted prompt, not {count} and {len(sides[1])}.")
    for name, some in (("answers", answers), ("wrong", wrong)):
        if len(some) not in (0, count):
            raise TaskError(f"{name} has {len(some)} entries for {count} pairs; give one for each pair, or none.")
    ends = [[_ids(model, one) for one in some] if len(some) else [()] * count for some in (answers, wrong)]
    named = {name: _for_each(name, span, count) for name, span in (spans or {}).items()}
    pairs = []
    for row in range(count):
        both = [model.as_tokens(side[row])[0] for side in sides]
        words = [tuple(_words(model, ids)) for ids in both]
        parts = {name: one[row] for name, one in named.items()}
        places = _spans(words, parts) if parts else _shared(both, words)
        if set(ends[0][row]) & set(ends[1][row]):
            raise TaskError("A token is among the right answers and among the wrong ones of a pair.")
        pairs.append(AlignedPair(both[0], both[1], places, ends[0][row], ends[1][row], (words[0], words[1])))
    return Alignment(_same_places(pairs))


@checked(TaskError)
def align_task(
    model: LanguageModel, task: Task, *, spans: Mapping[str, Span | Sequence[Span]] | None = None
) -> Alignment:
    """The prompts of a task with their places; as `align_prompts`, whose errors it raises."""
    return align_prompts(model, task.positives, task.corrupted, spans=spans, answers=task.answers, wrong=task.wrong)


def _ids(model: LanguageModel, answers: Answer | Sequence[Answer]) -> tuple[int, ...]:
    """Token ids of the answers of one pair; one that is named twice counts once."""
    found = {}
    for one in [answers] if isinstance(answers, str | int) else answers:
        ids = [one] if isinstance(one, int) else model.to_tokens(one, start=False)[0].tolist()
        if len(ids) != 1 or not 0 <= ids[0] < model.network.vocab_size:
            raise TaskError(f"The answer {one!r} is not a single token of {model.name}; choose one that is.")
        found[ids[0]] = None
    if not found:
        raise TaskError("A pair has an empty list of answers; name at least one, or leave all out.")
    return tuple(found)


def _for_each(name: str, span: Span | Sequence[Span], count: int) -> list[tuple[str, str]]:
    """The two texts of a span in each pair."""
    if name == LAST:
        raise TaskError(f"The place {LAST!r} is the last position of every prompt; call your span something else.")
    alike = isinstance(span, str) or (isinstance(span, tuple) and len(span) == 2)
    listed = [span] * count if alike else list(span)
    if len(listed) != count:
        raise TaskError(f"The span {name!r} has {len(listed)} entries for {count} pairs; give one for each pair.")
    return [(one, one) if isinstance(one, str) else (one[0], one[1]) for one in listed]  # type: ignore[misc]


def _words(model: LanguageModel, ids: Tensor) -> list[str]:
    """The text that each token completes; joined they are the text of the prompt."""
    return model.token_labels(ids) if model.tokenizer is None else model.text_pieces(ids)


def _spans(words: Sequence[Sequence[str]], parts: Mapping[str, tuple[str, str]]) -> list[Place]:
    """The places of named spans, and the last position behind them."""
    places = []
    for name, texts in parts.items():
        clean, corrupted = (_find(name, part, one) for part, one in zip(texts, words, strict=True))
        places.append(_place(name, clean, corrupted))
    return [*places, Place(LAST, (len(words[0]) - 1,), (len(words[1]) - 1,))]


def _find(name: str, part: str, words: Sequence[str]) -> tuple[int, ...]:
    """The positions of the tokens that hold a part of a prompt."""
    text = "".join(words)
    count = sum(text.startswith(part, at) for at in range(len(text)))  # also where they overlap
    if not part or count != 1:
        times = f"occurs {count} times" if part else "is empty"
        raise TaskError(f"The span {name!r}, {part!r}, {times} in {text!r}; give a text that occurs once.")
    first = text.index(part)
    found, start = [], 0
    for position, word in enumerate(words):
        # the first token that reaches into the part, and all that begin before its end
        if word and start < first + len(part) and start + len(word) > first:
            found.append(position)
        start += len(word)
    return tuple(range(found[0], found[-1] + 1))


def _shared(both: Sequence[Tensor], words: Sequence[Sequence[str]]) -> list[Place]:
    """The places of two prompts by the tokens that they share."""
    one, other = both[0].tolist(), both[1].tolist()
    if len(one) == len(other):
        return [_place(_label(words, n, n), (n,), (n,)) for n in range(len(one))]
    places: list[Place] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and b - a == d - c):
            places += [_place(_label(words, x, y), (x,), (y,)) for x, y in zip(range(a, b), range(c, d), strict=True)]
        elif kind == "replace":
            name = f"{a}:" + "".join(words[0][a:b]) + "→" + "".join(words[1][c:d])
            places.append(_place(name, tuple(range(a, b)), tuple(range(c, d))))
    if not places:
        raise TaskError("The two prompts share no token, so no positions stand for each other; name spans.")
    return places


def _label(words: Sequence[Sequence[str]], clean: int, corrupted: int) -> str:
    one, other = words[0][clean], words[1][corrupted]
    return f"{clean}:{one}" if one == other else f"{clean}:{one}→{other}"


def _place(name: str, clean: tuple[int, ...], corrupted: tuple[int, ...]) -> Place:
    """A place whose last tokens are exchanged, as many as both sides have."""
    count = min(len(clean), len(corrupted))
    left_out = max(len(clean), len(corrupted)) - count
    return Place(name, clean[-count:], corrupted[-count:], left_out)


def _same_places(pairs: list[AlignedPair]) -> list[AlignedPair]:
    """The pairs with the same names of places.

    Without spans the places of several pairs are numbered where all have as many.
    """
    names = [[place.name for place in pair.places] for pair in pairs]
    if all(one == names[0] for one in names):
        return pairs
    if len({len(one) for one in names}) > 1:
        raise TaskError(
            f"The pairs have unlike numbers of places, {sorted({len(one) for one in names})}; name spans, such as "
            'spans={"subject": [...]} with one text for each pair.'
        )
    return [_numbered(pair) for pair in pairs]


def _numbered(pair: AlignedPair) -> AlignedPair:
    places = [Place(str(n), one.clean, one.corrupted, one.left_out) for n, one in enumerate(pair.places)]
    return AlignedPair(pair.clean, pair.corrupted, places, pair.answers, pair.wrong, pair.words)

"""Generators of three tasks with known circuits, for the tokens of a model.

Indirect object identification: Wang et al. 2022, arXiv 2211.00593. Greater-than: Hanna, Liu, Variengien 2023, arXiv
2305.00586. Docstring: Heimersheim, Janiak 2023. The corruptions are those of O'Neill, Bui 2024, arXiv 2405.12522.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from workbench.circuits.errors import TaskError
from workbench.circuits.tasks import Task
from workbench.core.checks import Natural, Positive, checked
from workbench.core.text import counted
from workbench.model.language_model import LanguageModel

NAMES = (
    "Mary John David Anna James Robert Michael William Richard Thomas Charles Daniel Matthew Mark Paul Steven Andrew "
    "George Kevin Brian Edward Jason Jeffrey Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon "
    "Benjamin Samuel Frank Patrick Jack Dennis Adam Henry Peter Lisa Sarah Karen Nancy Emily Laura Rebecca Amy Kate "
    "Rachel Julia Alice Jane Martha Helen Emma Susan Linda Lucy"
)
PLACES = "store garden restaurant school hospital office house station market park"
OBJECTS = "ring kiss book basketball computer drink snack letter gift phone"
TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {object} to",
    "After {a} and {b} went to the {place}, {s} gave a {object} to",
    "While {a} and {b} were at the {place}, {s} gave a {object} to",
    "Once {a} and {b} got to the {place}, {s} gave a {object} to",
    "When {a} and {b} came to the {place}, {s} handed a {object} to",
)
NOUNS = "war conflict strike contract mission project tour journey trial reign marriage crisis famine campaign"
ARGUMENTS = (
    "files page names size read last first load path name test user text node item file code word date list line value "
    "model state table index image event group field point order level class mode frame result count start query"
)
WORDS = (
    "message tree oil column piece crime unit dark sector gap detail mine plant content population house river stone "
    "music paper summer winter garden market bridge school letter window engine island"
)
OFTEN = 40
"""Pairs of prompts drawn for each pair that is wanted."""


@checked(TaskError)
def ioi(model: LanguageModel, examples: Positive = 10, seed: Natural = 0) -> Task:
    """Indirect object identification: `When Mary and John went to the store, John gave a drink to` → ` Mary`.

    The wrong answer is the name of the subject. Either name comes first. In the corrupted prompt a third name replaces
    the repeated one, so that the indirect object is not determined.

    Raises:
        TaskError: too few of the words are single tokens for this model, or a number out of range.
    """
    names, places, objects = (_singles(model, words, 6) for words in (NAMES, PLACES, OBJECTS))

    def draw(chance: random.Random) -> Pair:
        subject, object_, third = chance.sample(names, 3)
        first = chance.sample((subject, object_), 2)
        words = {"place": chance.choice(places), "object": chance.choice(objects), "a": first[0], "b": first[1]}
        template = chance.choice(TEMPLATES)
        positive, corrupted = (template.format(s=name, **words) for name in (subject, third))
        return positive, corrupted, (f" {object_}",), (f" {subject}",)

    about = "The name that was not repeated follows. Corrupted: the repeated name is a third one."
    return _collect(model, "indirect object", draw, examples=examples, seed=seed, about=about)


@checked(TaskError)
def greater_than(model: LanguageModel, examples: Positive = 10, seed: Natural = 0) -> Task:
    """Greater-than: `The war lasted from the year 1732 to the year 17` → a digit above 3.

    For tokenizers that write numbers digit by digit. The answer is the first digit in which the years differ, the tens:
    digits above that of the first year are right, those below are wrong, and the digit itself is neither, since the
    last digit decides there. In the corrupted prompt the first year ends in 01, so that almost every digit is right.

    Raises:
        TaskError: this model's tokenizer does not write numbers digit by digit, or a number out of range.
    """
    if len(model.to_tokens("1732", start=False)[0]) != 4:
        raise TaskError(f"{model.name} does not write numbers digit by digit, which this form of greater-than needs.")
    nouns = _singles(model, NOUNS, 4)

    def draw(chance: random.Random) -> Pair:
        noun, century, tens, ones = (
            chance.choice(nouns),
            chance.randint(11, 18),
            chance.randint(2, 7),
            chance.choice(DIGITS),
        )
        positive, corrupted = (
            f"The {noun} lasted from the year {century}{end} to the year {century}" for end in (f"{tens}{ones}", "01")
        )
        return positive, corrupted, tuple(map(str, range(tens + 1, 10))), tuple(map(str, range(tens)))

    about = "The tens of a later year follow, digit by digit. Corrupted: the first year ends in 01."
    return _collect(model, "greater-than", draw, examples=examples, seed=seed, about=about)


@checked(TaskError)
def docstring(model: LanguageModel, examples: Positive = 10, seed: Natural = 0) -> Task:
    """Docstring completion: the third of a function's four arguments follows the docs of the first two.

    The other three arguments are wrong answers. In the corrupted prompt all arguments, in the definition and in the
    docs, have other names.

    Raises:
        TaskError: too few of the words are single tokens for this model, or a number out of range.
    """
    arguments, words = _singles(model, ARGUMENTS, 12), _singles(model, WORDS, 12)

    def prompt(name: str, docs: Sequence[str], mine: Sequence[str]) -> str:
        one, two, three, four = mine
        return (
            f"def {name}(self, {one}, {two}, {three}, {four}):\n"
            f'    """{docs[0]} {docs[1]} {docs[2]}\n\n'
            f"    :param {one}: {docs[3]} {docs[4]}\n"
            f"    :param {two}: {docs[5]} {docs[6]}\n"
            "    :param"
        )

    def draw(chance: random.Random) -> Pair:
        mine, docs = chance.sample(arguments, 9), chance.sample(words, 7)
        positive, corrupted = (prompt(mine[0], docs, some) for some in (mine[1:5], mine[5:]))
        return positive, corrupted, (f" {mine[3]}",), tuple(f" {mine[other]}" for other in (1, 2, 4))

    about = "The third argument's docs follow those of the first two. Corrupted: other names of the arguments."
    return _collect(model, "docstring", draw, examples=examples, seed=seed, about=about)


TASKS: dict[str, Callable[..., Task]] = {"indirect object": ioi, "greater-than": greater_than, "docstring": docstring}
"""The generators by the names of their tasks."""

Pair = tuple[str, str, Iterable[str], Iterable[str]]
DIGITS = "0123456789"


def _singles(model: LanguageModel, words: str, least: int) -> list[str]:
    """The words that are single tokens behind a space."""
    single = [word for word in words.split() if len(model.to_tokens(f" {word}", start=False)[0]) == 1]
    if len(single) < least:
        raise TaskError(
            f"For {model.name} only {len(single)} of the words of this task are single tokens; write the task as JSON "
            "lines with other words."
        )
    return single


def _collect(
    model: LanguageModel, name: str, draw: Callable[[random.Random], Pair], *, examples: int, seed: int, about: str
) -> Task:
    """A task of `examples` different pairs, all of the most frequent length."""
    drawn = list(_drawn(model, draw, random.Random(f"{name} {seed}"), OFTEN * examples))
    lengths = Counter(length for length, _ in drawn)
    usual = max(lengths, key=lambda length: (lengths[length], -length)) if lengths else 0
    pairs = list({pair[:2]: pair for length, pair in drawn if length == usual}.values())[:examples]
    if len(pairs) < examples:
        raise TaskError(
            f"Only {counted(len(pairs), 'pair')} of prompts with the same number of tokens could be made for "
            f"{model.name}."
        )
    return Task(name, *map(list, zip(*pairs, strict=True)), about=about)  # type: ignore[arg-type]


def _drawn(
    model: LanguageModel, draw: Callable[[random.Random], Pair], chance: random.Random, tries: int
) -> Iterator[tuple[int, Pair]]:
    """The number of tokens, and the pair, for drawn pairs whose two prompts have equally many tokens."""
    for _ in range(tries):
        pair = draw(chance)
        one, other = (model.to_tokens(prompt).shape[1] for prompt in pair[:2])
        if one == other:
            yield one, pair

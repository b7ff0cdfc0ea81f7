"""Small models whose weights are set by hand, so that the heads of their circuit are known.

Both are GPT-2s with two layers of eight heads. The residual stream has a part for each of these: the token and its
position as one-hot vectors, the previous token as the first layer's circuit head writes it, the output, and room in
which the other heads write vectors that nothing reads. Everything that heads write is written a second time with the
opposite sign. A large constant makes the norms divide by nearly the same number everywhere, so that the model can be
computed on paper. The other heads attend to the words that frame the task and write a random image of them; distractors
attend to the words of the task itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from workbench.circuits.errors import TaskError
from workbench.circuits.ground_truth_builder import BOS, DIGITS, GroundTruth, ModelBuilder
from workbench.circuits.tasks import Task
from workbench.core.checks import Natural, checked

NAMES = ["Ann", "Bob", "Cat", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kim", "Lee"]
FRAMES = ["so", "then", "now", "once", "well", "oh"]
NOUNS = ["war", "trip", "trial", "reign", "feud", "show"]
CENTURIES = ["13", "15", "16", "17"]


@checked(TaskError)
def induction_model(seed: Natural = 0, distractors: Natural = 0) -> GroundTruth:
    """A model of induction: `so Ann Bob now Cat Dan oh Ann` → `Bob`.

    A head of the first layer copies the previous token; one of the second attends to the position behind the earlier
    occurrence of the current token, and writes the token there. In the corrupted prompt another name replaces the
    earlier occurrence.

    Args:
        seed: of the places of the circuit's heads and of the weights of the others.
        distractors: number of other heads that attend to names.
    """
    words = [BOS, *NAMES, *FRAMES]
    builder = ModelBuilder(words, frame=FRAMES, topic=NAMES, seed=seed)
    before, induct = builder.take_head(0), builder.take_head(1)
    builder.add_previous_token_head(before)
    builder.add_induction_head(induct, NAMES)
    builder.fill_other_heads([before, induct], distractors)
    return builder.finish([before, induct], _induction_task)


@checked(TaskError)
def greater_than_model(seed: Natural = 0, distractors: Natural = 0) -> GroundTruth:
    """A model of greater-than on years: `war from 17 3 2 to 17` → a digit above 3.

    A head of the first layer copies the previous token, so that the tens are at the last digit; two equal heads of the
    second attend two positions back and copy the tens; the second layer's MLP raises all digits above the tens and
    lowers all digits below. In the corrupted prompt the first year ends in 01.

    Args:
        seed: of the places of the circuit's heads and of the weights of the others.
        distractors: number of other heads that attend to digits.
    """
    words = [BOS, *NOUNS, "from", "to", *CENTURIES, *DIGITS]
    builder = ModelBuilder(words, frame=[*NOUNS, *CENTURIES], topic=DIGITS, seed=seed)
    before, one, other = builder.take_head(0), builder.take_head(1), builder.take_head(1)
    builder.add_previous_token_head(before)
    for place in (one, other):
        builder.add_lookback_head(place, 2, DIGITS)
    builder.fill_other_heads([before, one, other], distractors)
    builder.add_comparison_mlp(1)
    return builder.finish([before, one, other], _greater_than_task)


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

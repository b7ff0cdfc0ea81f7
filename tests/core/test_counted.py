"""Numbers with their words."""

import pytest

from workbench.core.text import counted


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, "text"), "0 texts"),
        ((1, "text"), "1 text"),
        ((2048, "token"), "2,048 tokens"),
        ((1, "dictionary", "dictionaries"), "1 dictionary"),
        ((2, "dictionary", "dictionaries"), "2 dictionaries"),
        ((1, "text is", "texts are"), "1 text is"),
    ],
)
def test_a_number_has_its_word(arguments: tuple, text: str) -> None:
    assert counted(*arguments) == text

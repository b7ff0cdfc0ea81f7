"""Few texts: the sentence says how many there are and how many it takes."""

import pytest
import tiny
import torch

import workbench as wb
from workbench.directions.methods import lda


def test_one_text_is_one_text() -> None:
    model = wb.load_model(tiny.build("llama"), tokenizer=tiny.tokenizer())
    with pytest.raises(wb.directions.DirectionError, match=r"^1 positive text is too few.* 3 of each"):
        wb.directions.find_direction(model, ["The dog"], ["The river"])
    shared = ["The dog", "The king", "The river"]
    with pytest.raises(wb.directions.DirectionError, match=r"^1 text is positive and negative"):
        wb.directions.find_direction(model, shared, ["The river", "A war", "A city"])


def test_lda_of_one_text_a_class_says_that_it_takes_more() -> None:
    one, other = torch.randn(2, 1, 8, dtype=torch.float64)
    with pytest.raises(wb.directions.DirectionError, match="at least four of each"):
        lda(one, other)
    assert lda(torch.randn(2, 8, dtype=torch.float64), other).shape == (8,)

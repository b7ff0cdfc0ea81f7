"""Losses where there is no position: an empty result of the right shape."""

from __future__ import annotations

import pytest
import torch

from workbench.evaluation.losses import cross_entropy, kl_divergence


@pytest.mark.parametrize("lead", [(0,), (2, 0), (0, 3)])
def test_no_position_has_no_loss(lead: tuple[int, ...]) -> None:
    logits, targets = torch.zeros(*lead, 5), torch.zeros(lead, dtype=torch.long)
    assert cross_entropy(logits, targets).shape == lead
    assert kl_divergence(logits, logits).shape == lead

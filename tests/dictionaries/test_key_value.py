"""Discrete key-value bottleneck beside brute force: nearest keys, updates that touch only what was fetched."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import workbench as wb


def small() -> wb.dictionaries.KeyValueBottleneck:
    made = wb.dictionaries.KeyValueBottleneck(6, 4, codebooks=3, n_keys=7, d_key=2)
    made.values.copy_(torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(2)))
    return made


def test_brute_force() -> None:
    kv, x = small(), torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    codes, made = kv.encode(x), kv.decode(kv.encode(x))
    for row in range(9):
        total = torch.zeros(4)
        for book in range(3):
            seen = x[row] @ kv.projections[book]
            key = int(torch.stack([(seen - kv.keys[book, place]).norm() for place in range(7)]).argmin())
            assert int(codes.indices[row, book]) == 7 * book + key
            total += kv.values[book, key] / 3
        torch.testing.assert_close(made[row], total)


def test_a_step_is_gradient_descent_and_touches_only_what_was_fetched() -> None:
    kv, x = small(), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 3, 3, 1, 2])
    values = kv.values.detach().clone().requires_grad_()
    fetched = kv.encode(x).indices  # [5, 3]
    logits = values.flatten(0, 1)[fetched].mean(1)
    loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, values)
    before = kv.values.clone()
    assert kv.learn(x, labels, lr=0.2) == pytest.approx(loss.item() / 5)
    torch.testing.assert_close(kv.values, before - 0.2 * 3 * gradient)
    touched = (kv.values != before).any(-1).flatten().nonzero()[:, 0]
    assert set(touched.tolist()) == set(fetched.flatten().tolist())


def test_keys_find_clusters_that_are_there() -> None:
    chance = torch.Generator().manual_seed(3)
    centres = 5 * torch.randn(8, 6, generator=chance)
    x = centres.repeat(50, 1) + 0.01 * torch.randn(400, 6, generator=chance)
    kv = wb.dictionaries.KeyValueBottleneck(6, 2, codebooks=4, n_keys=32, d_key=3)
    history = kv.learn_keys(x, epochs=20, batch=64)
    assert history[-1] < min(history[0], 1e-3)  # the clusters themselves are 5 apart
    indices = kv.encode(x).indices.view(50, 8, 4)
    apart = [len(set(indices[0, :, book].tolist())) for book in range(4)]
    assert min(apart) == 8  # no two clusters share a key
    assert float(kv.values.abs().max()) == 0.0


def test_what_was_learned_of_one_cluster_is_kept_while_another_learns() -> None:
    chance = torch.Generator().manual_seed(3)
    centres = 5 * torch.randn(4, 6, generator=chance)
    x = centres.repeat(50, 1) + 0.05 * torch.randn(200, 6, generator=chance)
    labels = torch.arange(4).repeat(50)
    kv = wb.dictionaries.KeyValueBottleneck(6, 4, codebooks=8, n_keys=32, d_key=3)
    kv.learn_keys(x, epochs=20, batch=64)
    for label in range(4):
        for _ in range(20):
            kv.learn(x[labels == label], labels[labels == label], lr=0.01)
    assert float((kv.decode(kv.encode(x)).argmax(-1) == labels).double().mean()) == 1.0


@pytest.mark.parametrize(
    ("how", "words"),
    [({"d_in": 0}, "d_in is a whole number"), ({"n_keys": 1.5}, "n_keys is"), ({"codebooks": True}, "codebooks is")],
)
def test_bad_sizes(how: dict[str, Any], words: str) -> None:
    with pytest.raises(wb.dictionaries.DictionaryError, match=words):
        wb.dictionaries.KeyValueBottleneck(**{"d_in": 4, "d_value": 2} | how)


def test_bad_labels_and_activations() -> None:
    kv = small()
    with pytest.raises(wb.dictionaries.DictionaryError, match="class from 0 to 3"):
        kv.learn(torch.zeros(1, 6), torch.tensor([4]))
    with pytest.raises(wb.dictionaries.DictionaryError, match=r"Labels are \[batch\]"):
        kv.learn(torch.zeros(2, 6), torch.tensor([1]))
    with pytest.raises(wb.dictionaries.DictionaryError, match="width 6"):
        kv.encode(torch.zeros(2, 5))
    with pytest.raises(wb.dictionaries.DictionaryError, match="learned from activations"):
        kv.learn_keys(torch.zeros(6))

"""Laws that every kind of dictionary keeps, found in the registry; and small cases that a person can check."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workbench.dictionaries.batchtopk import BatchTopK, BatchTopKSAE
from workbench.dictionaries.coder import ROWS, SparseCoder
from workbench.dictionaries.codes import Change, Codes, Rewrite
from workbench.dictionaries.features import FeatureError
from workbench.dictionaries.folder import DictionaryError
from workbench.dictionaries.jumprelu import JumpReLU, JumpReLUSAE
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.relu import ReLU, SkipTranscoder, StandardSAE, Transcoder
from workbench.dictionaries.sparse import top_k
from workbench.dictionaries.topk import TopK, TopKSAE, TopKTranscoder
from workbench.dictionaries.trainable import Trainable

KINDS = sorted(Dictionary.kinds.values(), key=lambda kind: kind.kind)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
TWO = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
"""Two inputs: the first axis, and twice the second."""


def small(kind: type[Dictionary]) -> Dictionary:
    """A kind's example with every parameter different from its start."""
    dictionary = kind.example()
    torch.manual_seed(0)
    for name, tensor in dictionary.state_dict().items():
        tensor.add_(0.1 * torch.rand(tensor.shape) if "threshold" in name else 0.1 * torch.randn(tensor.shape))
    return dictionary


def inputs(dictionary: Dictionary, *shape: int) -> Tensor:
    """Random activations of the right width."""
    return torch.randn(*shape, dictionary.d_in, generator=torch.Generator().manual_seed(1))


@every_kind
def test_shapes_and_indices(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    for shape in ((), (5,), (2, 3), (0,), (2, 0)):
        x = inputs(dictionary, *shape)
        codes = dictionary.encode(x)
        assert codes.values.shape == codes.indices.shape
        assert codes.values.shape[:-1] == shape
        assert codes.n_features == dictionary.n_features
        assert bool(((codes.indices >= 0) & (codes.indices < dictionary.n_features)).all())
        assert dictionary.decode(codes).shape == (*shape, dictionary.d_out)
        assert dictionary.reconstruct(x).shape == (*shape, dictionary.d_out)
        assert codes.dense().shape == (*shape, dictionary.n_features)


@every_kind
def test_present_features_are_listed_once(kind: type[Dictionary]) -> None:
    codes = small(kind).encode(inputs(small(kind), 40))
    for values, indices in zip(codes.values, codes.indices, strict=True):
        present = indices[values != 0]
        assert len(present.unique()) == len(present)


@every_kind
def test_decode_is_affine_in_the_values(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    codes = dictionary.encode(inputs(dictionary, 6))

    def decoded(factor: float) -> Tensor:
        return dictionary.decode(Codes(codes.values * factor, codes.indices, codes.n_features))

    torch.testing.assert_close(decoded(3) - decoded(0), 3 * (decoded(1) - decoded(0)), rtol=1e-4, atol=1e-5)
    assert not torch.equal(decoded(1), decoded(0))


@every_kind
def test_a_value_of_0_means_absent(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    codes = dictionary.encode(inputs(dictionary, 6))
    nothing = torch.zeros(6, 1)
    for index in (0, dictionary.n_features - 1):
        padded = Codes(
            torch.cat([codes.values, nothing], 1),
            torch.cat([codes.indices, torch.full((6, 1), index)], 1),
            codes.n_features,
        )
        torch.testing.assert_close(dictionary.decode(padded), dictionary.decode(codes))
        assert torch.equal(padded.value_of(index), codes.value_of(index))


@every_kind
def test_directions_are_what_one_unit_adds(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    for index in range(dictionary.n_features):
        one, none = (Codes(torch.tensor([v]), torch.tensor([index]), dictionary.n_features) for v in (1.0, 0.0))
        added = dictionary.decode(one) - dictionary.decode(none)
        torch.testing.assert_close(added, dictionary.direction(index), rtol=1e-4, atol=1e-5)


@every_kind
def test_rows_do_not_depend_on_their_neighbours(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    x = inputs(dictionary, ROWS + 7)
    together = dictionary.encode(x)
    for row in (0, ROWS - 1, ROWS, ROWS + 6):
        torch.testing.assert_close(together.dense()[row], dictionary.encode(x[row]).dense(), rtol=1e-4, atol=1e-5)


@every_kind
def test_intervening_with_the_identity_leaves_every_bit(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    read = inputs(dictionary, 4, 3)
    written = torch.randn(4, 3, dictionary.d_out)
    changes = [Change(index, lambda value: value) for index in range(dictionary.n_features)]
    assert torch.equal(
        dictionary.intervene(read, written if dictionary.d_in != dictionary.d_out else read, changes),
        written if dictionary.d_in != dictionary.d_out else read,
    )


@every_kind
def test_intervening_adds_the_difference_of_the_decoded_codes(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    if kind.kind == "neurons":
        pytest.skip("an assignment, not a sum")
    read = inputs(dictionary, 4)
    written = torch.randn(4, dictionary.d_out)
    new = dictionary.intervene(read, written, [Change(1, lambda value: value + 2), Change(1, lambda value: value * 3)])
    wanted = 3 * (dictionary.encode(read).value_of(1) + 2) - dictionary.encode(read).value_of(1)
    torch.testing.assert_close(new, written + wanted[:, None] * dictionary.direction(1))


@every_kind
def test_intervening_writes_into_none_of_its_inputs(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    read = inputs(dictionary, 4)
    written = read if dictionary.d_in == dictionary.d_out else torch.randn(4, dictionary.d_out)
    before = read.clone(), written.clone()
    changes: list[Change | Rewrite] = [Change(1, lambda value: value + 2)]
    if kind.discrete:
        changes.append(Rewrite(lambda codes: dictionary.force(codes, 2, "all")))
    dictionary.intervene(read, written, changes)
    assert torch.equal(read, before[0])
    assert torch.equal(written, before[1])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.discrete], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("replaces", ["least", "all", "none"])
def test_a_forced_code_takes_the_place_that_it_says(kind: type[Dictionary], replaces: str) -> None:
    dictionary = small(kind)
    codes = dictionary.encode(inputs(dictionary, 30))
    size, k = dictionary.n_features // dictionary.groups, codes.values.shape[-1] // dictionary.groups
    for index in range(dictionary.n_features):
        before = codes.dense() != 0
        after = dictionary.force(codes, index, replaces).dense() != 0
        group = slice(index // size * size, (index // size + 1) * size)
        outside = torch.ones(dictionary.n_features, dtype=torch.bool)
        outside[group] = False
        assert torch.equal(after[:, outside], before[:, outside])
        assert bool(after[:, index].all())
        left = {"least": torch.full((30,), k), "all": torch.ones(30), "none": k + (~before[:, index]).long()}[replaces]
        assert after[:, group].sum(1).tolist() == left.tolist()


@every_kind
def test_features_are_named_and_checked(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    feature = dictionary.feature(3)
    assert str(feature) == f"{dictionary.name}:3"
    assert feature.source is dictionary
    with pytest.raises(FeatureError, match=r"has \d+ features"):
        dictionary.feature(dictionary.n_features)
    with pytest.raises(FeatureError):
        dictionary.direction(-1)


@every_kind
def test_encoding_builds_no_graph_unless_asked(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    if kind.kind == "neurons":
        pytest.skip("has no weights")
    assert not dictionary.reconstruct(inputs(dictionary, 3)).requires_grad
    x = inputs(dictionary, 3).requires_grad_()
    if kind.kind == "key_value":  # which key is nearest passes no gradient, and its encoder is frozen
        assert not dictionary.reconstruct(x).requires_grad
        return
    dictionary.reconstruct(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.abs().sum() > 0)


@every_kind
def test_encode_against_the_formula(kind: type[Dictionary]) -> None:
    coder = small(kind)
    if not isinstance(coder, SparseCoder):
        pytest.skip("has no encoder")
    x = inputs(coder, 50)
    pre = (x - coder.b_dec if coder.centred else x) @ coder.W_enc + coder.b_enc
    dense = torch.zeros_like(pre)
    for row in range(len(x)):
        for latent in range(coder.n_features):
            value = float(pre[row, latent])
            if isinstance(coder.activation, TopK):
                active = int((pre[row] > value).sum()) < 4
            else:
                active = value > float(coder.tensors().get("threshold", torch.zeros(coder.n_features))[latent])
            if active and value > 0:
                dense[row, latent] = value
    if type(coder.activation) not in (ReLU, JumpReLU, TopK, BatchTopK):  # which has a rule of its own
        values, latents = coder.activation.codes(pre)
        dense = torch.zeros_like(pre).scatter_add_(1, latents, values)
    torch.testing.assert_close(coder.encode(x).dense(), dense, rtol=1e-4, atol=1e-5)
    made = dense @ coder.W_dec + coder.b_dec
    torch.testing.assert_close(coder.decode(coder.encode(x)), made, rtol=1e-4, atol=1e-5)
    if coder.W_skip is not None:
        made = made + x @ coder.W_skip.T
    torch.testing.assert_close(coder.reconstruct(x), made, rtol=1e-4, atol=1e-5)


@every_kind
def test_kinds_say_what_they_are(kind: type[Dictionary]) -> None:
    dictionary = small(kind)
    assert kind.noun.isalpha()
    assert kind.noun.islower()
    assert dictionary.n_features % dictionary.groups == 0
    codes = dictionary.encode(inputs(dictionary, 4))
    assert codes.values.shape[-1] % dictionary.groups == 0
    if kind.discrete:
        assert dictionary.force(codes, 1, "least").value_of(1).all()
    else:
        with pytest.raises(DictionaryError, match="no discrete codes to force"):
            dictionary.force(codes, 1, "least")


def by_hand(coder: SparseCoder, **weights: list) -> None:
    """Set weights to given numbers."""
    for name, numbers in weights.items():
        getattr(coder, name).copy_(torch.tensor(numbers))


def test_topk_by_hand() -> None:
    sae = TopKSAE(d_in=2, width=2, k=1)
    by_hand(sae, W_enc=[[1, 2], [0, 1]], b_enc=[0, -1], W_dec=[[1, 0], [0, 1]], b_dec=[0, 1])
    # centred [[1, -1], [0, 1]]; times W_enc [[1, 1], [0, 1]]; plus b_enc [[1, 0], [0, 0]]
    assert sae.encode(TWO).dense().tolist() == [[1, 0], [0, 0]]
    assert sae.reconstruct(TWO).tolist() == [[1, 1], [0, 1]]


def test_relu_by_hand() -> None:
    sae = StandardSAE(d_in=2, width=2)
    by_hand(sae, W_enc=[[1, 2], [0, 1]], b_enc=[0.5, -1], W_dec=[[1, 0], [3, 1]], b_dec=[0, 1])
    # centred [[1, -1], [0, 1]]; times W_enc [[1, 1], [0, 1]]; plus b_enc [[1.5, 0], [0.5, 0]]
    assert sae.encode(TWO).dense().tolist() == [[1.5, 0], [0.5, 0]]
    assert sae.reconstruct(TWO).tolist() == [[1.5, 1], [0.5, 1]]


def test_jumprelu_by_hand() -> None:
    sae = JumpReLUSAE(d_in=2, width=2)
    by_hand(sae, W_enc=[[1, 0], [0, 1]], W_dec=[[1, 1], [0, 1]])
    sae.activation.threshold.copy_(torch.tensor([1.0, 1.0]))
    assert sae.encode(TWO).dense().tolist() == [[0, 0], [0, 2]]  # 1 is not above 1
    assert sae.reconstruct(TWO).tolist() == [[0, 0], [0, 2]]


def test_batchtopk_by_hand() -> None:
    sae = BatchTopKSAE(d_in=2, width=2, k=0.5)
    by_hand(sae, W_enc=[[1, 0], [0, 1]], W_dec=[[1, 0], [0, 1]])
    assert sae.encode(TWO).dense().tolist() == [[1, 0], [0, 2]]  # the threshold is 0 until it is learned
    step = sae.loss_and_gradients(TWO)  # one of the batch's two values stays: the 2
    assert step.fired.tolist() == [0, 1]
    assert step.loss == 0.5
    assert sae.activation.threshold.tolist() == [2, 2]
    assert sae.encode(torch.tensor([[1.5, 2.5]])).dense().tolist() == [[0, 2.5]]


def test_transcoder_by_hand() -> None:
    coder = Transcoder(d_in=2, width=2, d_out=1)
    by_hand(coder, W_enc=[[1, 0], [0, 1]], b_enc=[0, -1], W_dec=[[2], [3]], b_dec=[10])
    assert coder.reconstruct(TWO).tolist() == [[12], [13]]
    skip = SkipTranscoder(d_in=2, width=2, d_out=1)
    by_hand(skip, W_enc=[[1, 0], [0, 1]], b_enc=[0, -1], W_dec=[[2], [3]], b_dec=[10], W_skip=[[100, 1000]])
    assert skip.reconstruct(TWO).tolist() == [[112], [2013]]
    assert skip.decode(skip.encode(TWO)).tolist() == [[12], [13]]


def test_the_contract() -> None:
    sae = TopKSAE(d_in=576, width=4608, k=32)
    assert (sae.d_in, sae.d_out, sae.n_features, sae.reads, sae.writes) == (576, 576, 4608, "", "")
    codes = sae.encode(torch.randn(2, 5, 576))
    assert codes.values.shape == (2, 5, 32)
    assert sae.decode(codes).shape == (2, 5, 576)
    assert str(sae.feature(123)) == "topk:123"
    at = TopKSAE(576, 64, 4, hook_point="blocks.15.hook_resid_post", name="mine")
    assert (at.reads, at.writes, at.name) == ("blocks.15.hook_resid_post", "blocks.15.hook_resid_post", "mine")
    across = TopKTranscoder(8, 16, 4, reads="blocks.0.ln2.hook_normalized", writes="blocks.0.hook_mlp_out")
    assert across.reads != across.writes


def test_seeds() -> None:
    assert TopKSAE(8, 16, 2).hash == TopKSAE(8, 16, 2).hash != TopKSAE(8, 16, 2, seed=1).hash


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TopKSAE(8, 16, 17),
        lambda: TopKSAE(8, 16, 0),
        lambda: TopKSAE(0, 16, 1),
        lambda: BatchTopKSAE(8, 16, -1),
        lambda: BatchTopKSAE(8, 16, 17),
        lambda: JumpReLUSAE(8, 8, -1),
        lambda: JumpReLUSAE(8, 8, bandwidth=0),
        lambda: Transcoder(8, 8, float("inf")),
        lambda: Transcoder(8, 8, d_out=True),
        lambda: TopKSAE(8, 16, 2, auxiliary=float("nan")),
        lambda: TopKSAE(8, 16, 2, seed=-1),
    ],
)
def test_sizes_are_checked(wrong) -> None:
    with pytest.raises(DictionaryError, match="number"):
        wrong()


def test_numbers_reach_the_kind_as_they_are() -> None:
    assert type(BatchTopKSAE(8, 16, 4).activation.k) is int  # on disk it is 4 and not 4.0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, Trainable)], ids=lambda kind: kind.kind)
def test_a_form_can_build_every_kind(kind: type[Trainable]) -> None:
    fields = kind.fields()
    assert fields[0].name in ("width", "n_codes")
    for field in fields:
        assert field.title
        assert field.least is not None
        assert field.least <= field.default
        assert isinstance(field.default, int) or not field.whole
    built = kind(8, **{field.name: field.default for field in fields})  # type: ignore[call-arg]
    assert built.n_features in [field.default for field in fields]
    for field in fields:
        with pytest.raises(DictionaryError, match=f"^{field.name} is a "):
            kind(8, **{one.name: one.default for one in fields} | {field.name: field.least - 1})  # type: ignore[call-arg]


def test_wrong_widths_are_one_sentence() -> None:
    sae = TopKSAE(8, 16, 2)
    with pytest.raises(DictionaryError, match="reads activations of width 8, not 9"):
        sae.encode(torch.zeros(3, 9))
    with pytest.raises(DictionaryError, match="16 features and takes its own codes"):
        sae.decode(TopKSAE(8, 32, 2).encode(torch.zeros(1, 8)))
    with pytest.raises(DictionaryError, match="learns from"):
        sae.loss_and_gradients(torch.zeros(3, 8), torch.zeros(2, 8))


def test_one_word_is_one_kind() -> None:
    with pytest.raises(TypeError, match="'topk'"):
        type("Other", (TopKSAE,), {"kind": "topk"})
    assert Dictionary.kinds["topk"] is TopKSAE


@pytest.mark.parametrize(("width", "k"), [(4608, 32), (4609, 32), (24, 4), (100, 100), (100, 99), (5000, 1), (1, 1)])
def test_top_k_finds_the_highest(width: int, k: int) -> None:
    for rows in (1, 3, 200):
        scores = torch.randn(rows, width)
        found = top_k(scores, k)
        assert found.shape == (rows, k)
        torch.testing.assert_close(scores.gather(1, found).sort(1).values, scores.topk(k).values.flip(1))
    ties = torch.zeros(2, width)
    assert all(len(row.unique()) == k for row in top_k(ties, k))


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "standard", "topk_transcoder"])
def test_a_width_that_is_none_is_named_before_k_is(kind: str):
    with pytest.raises(DictionaryError, match=r"^width is a whole number from 1, not -1\.$"):
        Dictionary.kinds[kind](8, -1)  # type: ignore[call-arg]

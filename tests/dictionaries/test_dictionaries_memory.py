"""Dictionaries stay in their file until they are used, and move to another device in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import DEVICE, back, on_accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.core import tensor_files
from workbench.core.errors import WorkbenchError
from workbench.core.hashing import fingerprint
from workbench.core.tensor_files import file_fingerprint
from workbench.dictionaries import protocol
from workbench.dictionaries.coder import SparseCoder
from workbench.dictionaries.folder import WEIGHTS, DictionaryError
from workbench.dictionaries.loading import load_dictionary
from workbench.dictionaries.protocol import Dictionary
from workbench.dictionaries.topk import TopKSAE
from workbench.dictionaries.trainable import Trainable

every_kind = pytest.mark.parametrize("kind", [Dictionary.kinds[word] for word in sorted(Dictionary.kinds)])
MAPPED = sorted(word for word, kind in Dictionary.kinds.items() if kind.config is not Dictionary.config)


def in_file(tensor: Tensor, file: Path) -> bool:
    """Whether a tensor's memory is that of the mapped file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(file))]
    return any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in spans)


@pytest.mark.parametrize("word", MAPPED)
def test_a_direction_is_read_from_the_file(word: str, tmp_path: Path) -> None:
    made = Dictionary.kinds[word].example()
    made.save(tmp_path / "d")
    opened: Any = load_dictionary(tmp_path / "d")
    file = tmp_path / "d" / WEIGHTS
    assert torch.equal(opened.direction(3), made.direction(3))
    assert opened.hash == made.hash
    assert all(in_file(tensor, file) for tensor in opened.state_dict().values())
    if isinstance(opened, SparseCoder):
        assert opened.direction(3).data_ptr() == opened.W_dec.data_ptr() + 3 * opened.d_out * 4
        x, row = torch.randn(5, opened.d_in), opened.W_enc_T[3].clone()
        assert torch.equal(opened.encode(x).dense(), made.encode(x).dense())
        assert opened.W_enc_T.is_contiguous()
        assert not in_file(opened.W_enc_T, file)
        assert torch.equal(opened.W_enc_T[3], row)
        assert all(in_file(one, file) for name, one in opened.state_dict().items() if name != "W_enc_T")


def test_the_hash_of_the_file_is_that_of_the_dictionary_and_follows_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = TopKSAE(8, 24, 4)
    sae.save(tmp_path / "d")
    opened, made_hash = load_dictionary(tmp_path / "d"), sae.hash
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "fingerprint", lambda _: pytest.fail("weights are hashed again"))
        for _ in range(2):
            assert opened.hash == made_hash
            opened.encode(torch.randn(3, 8))
    assert isinstance(opened, TopKSAE)
    opened.W_dec[2] += 1
    sae.W_dec[2] += 1
    assert opened.hash == sae.hash
    assert load_dictionary(tmp_path / "d").hash != sae.hash, "the file is changed with the dictionary"


def test_an_encoder_that_is_used_first_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    TopKSAE(8, 24, 4).save(tmp_path / "d")
    opened = load_dictionary(tmp_path / "d")
    assert isinstance(opened, Trainable)
    parameters = dict(opened.named_parameters())
    with torch.inference_mode():
        opened.encode(torch.randn(3, 8))
    assert all(one is parameters[name] for name, one in opened.named_parameters()), "an optimiser would lose it"
    opened.loss_and_gradients(torch.randn(16, 8))
    torch.optim.SGD([parameters["W_enc_T"]], 0.1).step()
    assert parameters["W_enc_T"].grad is not None


@pytest.mark.parametrize("piece", [8, 56, 2**20])
def test_a_file_in_pieces_has_the_fingerprint_of_its_tensors(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "PIECE", piece)
    tensors = {"b": torch.randn(7), "a": torch.randn(5, 3), "half": torch.randn(9).half(), "none": torch.zeros(0)}
    save_file(tensors, tmp_path / "f", metadata={"note": "some"})
    seen: dict[str, list[Tensor]] = {name: [] for name in tensors}
    found = file_fingerprint(tmp_path / "f", tensors, WorkbenchError, lambda name, one: seen[name].append(one.clone()))
    assert found == fingerprint(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(torch.cat([tensor.new_zeros(0), *seen[name]]), tensor.flatten())
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-3])
    with pytest.raises(WorkbenchError, match="is cut short"):
        file_fingerprint(tmp_path / "f", tensors, WorkbenchError, lambda *_: None)


def test_values_that_are_not_finite_are_found_in_every_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "PIECE", 64)
    TopKSAE(8, 24, 4).save(tmp_path / "d")
    tensors = load_file(tmp_path / "d" / WEIGHTS)
    tensors["W_dec"][20, 3] = torch.nan
    save_file(tensors, tmp_path / "d" / WEIGHTS)
    with pytest.raises(DictionaryError, match="its W_dec holds values that are not finite"):
        load_dictionary(tmp_path / "d")


@every_kind
@on_accelerator
def test_a_dictionary_moves_in_place_and_keeps_its_hash(kind: type[Dictionary], tmp_path: Path) -> None:
    made = kind.example()
    x, before = torch.randn(5, made.d_in), made.hash
    codes, x_hat = made.encode(x), made.reconstruct(x)
    assert made.to(DEVICE) is made
    moved = [made]
    if kind.config is not Dictionary.config:
        kind.example().save(tmp_path / "d")
        moved.append(load_dictionary(tmp_path / "d", device=DEVICE))
    for one in moved:
        assert all(tensor.device == DEVICE for tensor in one.state_dict().values())
        assert one.hash == before
        there = one.encode(x.to(DEVICE))
        assert there.indices.device == DEVICE
        assert torch.equal(back(there.dense()), codes.dense())
        torch.testing.assert_close(back(one.reconstruct(x.to(DEVICE))), x_hat)
    for one in moved:
        with torch.inference_mode():
            one.to("cpu")
        assert one.hash == before
        assert torch.equal(one.encode(x).dense(), codes.dense())


def test_a_device_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    sae = TopKSAE(8, 24, 4)
    sae.save(tmp_path / "d")
    for device in ("cuda:77", "no device"):
        with pytest.raises(DictionaryError, match="device"):
            load_dictionary(tmp_path / "d", device=device)
        with pytest.raises(DictionaryError, match="can't be moved"):
            sae.to(device)
    assert load_dictionary(tmp_path / "d", device="cpu").hash == sae.hash


def test_matrices_in_16_bits_are_computed_in_float32(tmp_path: Path) -> None:
    """Codes, reconstructions, directions and hash are those of the same values in float32, and a step learns alike."""
    width, d = 40, 16
    for dtype in (torch.bfloat16, torch.float16):
        tensors = {"W_enc": torch.randn(width, d), "W_dec": torch.randn(width, d), "b_enc": torch.randn(width)}
        tensors |= {"b_dec": torch.randn(d)}
        rounded = {name: one.to(dtype) for name, one in tensors.items()}
        for name, saved in (("half", rounded), ("single", {name: one.float() for name, one in rounded.items()})):
            (tmp_path / f"{dtype} {name}").mkdir()
            save_file(saved, tmp_path / f"{dtype} {name}" / "layer_0.safetensors")
        opened = [load_dictionary(tmp_path / f"{dtype} {name}") for name in ("half", "single")]
        assert (opened[0].W_dec.dtype, opened[0].W_enc_T.dtype) == (dtype, dtype)
        x, target = torch.randn(6, d), torch.randn(6, d)
        assert opened[0].direction(3).dtype == torch.float32
        assert torch.equal(opened[0].direction(3), opened[1].direction(3))
        codes = [one.encode(x) for one in opened]
        assert torch.equal(codes[0].dense(), codes[1].dense())
        torch.testing.assert_close(opened[0].decode(codes[0]), opened[1].decode(codes[1]))
        assert (opened[0].W_dec.dtype, opened[0].W_enc_T.dtype) == (dtype, torch.float32)
        assert opened[0].hash == opened[1].hash
        assert opened[0].config()["dtype"] == "float32"
        for one in opened:
            one.begin(x, target, fresh=False)
        assert opened[0].W_dec.dtype == torch.float32
        steps = [one.loss_and_gradients(x, target) for one in opened]
        assert steps[0].loss == pytest.approx(steps[1].loss)
        again = load_dictionary(tmp_path / f"{dtype} half")
        again.load_state_dict(opened[1].state_dict())
        assert torch.equal(again.W_dec, opened[1].W_dec)
        moved = load_dictionary(tmp_path / f"{dtype} half").to("cpu")
        assert moved.W_dec.dtype == torch.float32
        for value in (torch.nan, torch.inf):
            rounded["W_dec"][7, 3] = value
            save_file(rounded, tmp_path / f"{dtype} half" / "layer_0.safetensors")
            with pytest.raises(DictionaryError, match="not finite"):
                load_dictionary(tmp_path / f"{dtype} half")

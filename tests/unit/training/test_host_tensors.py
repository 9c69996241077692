"""Copies on the host that are a safetensors file already."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from rft.training.host_tensors import HostTensors

TENSORS = {
    "b.half": torch.tensor([[1.5, -0.0, float("inf")]], dtype=torch.bfloat16),
    "a.matrix": torch.arange(12.0).view(3, 4)[:, 1:3].T,
    "step": torch.tensor(3.0),
    "odd": torch.tensor([True, False, True]),
    "none": torch.empty(0, 4),
    "long": torch.tensor([2**40, -1]),
    'name with "quotes" and ü': torch.tensor([7], dtype=torch.uint8),
}


def test_the_library_reads_what_was_put_in(tmp_path: Path) -> None:
    content = b"".join(bytes(part) for part in HostTensors(TENSORS).file({"format": "pt"}))
    found = load(content)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor), name
    (tmp_path / "file").write_bytes(content)
    with safe_open(tmp_path / "file", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert (8 + int.from_bytes(content[:8], "little")) % 64 == 0


def test_copies_stay_when_the_originals_change() -> None:
    tensor = torch.ones(3)
    copies = HostTensors({"a": tensor})
    tensor.zero_()
    assert copies["a"].tolist() == [1, 1, 1]
    assert (list(copies), len(copies)) == (["a"], 1)


def test_no_tensor_at_all() -> None:
    assert load(b"".join(bytes(part) for part in HostTensors({}).file())) == {}


def test_a_dtype_that_the_format_lacks() -> None:
    with pytest.raises(KeyError):
        HostTensors({"a": torch.zeros(2, dtype=torch.complex64)})

"""Tensors copied to host memory in the layout of a safetensors file, so that saving them copies nothing more."""

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes; a tensor that begins at a multiple is as fast to compute with as one of torch's own."""

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As the format names them (https://github.com/huggingface/safetensors#format)."""


class HostTensors(Mapping[str, Tensor]):
    """Copies that nothing else writes to, side by side in one buffer, the largest elements first."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        """Raises KeyError for a dtype that the format does not have."""
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        sizes = [tensors[name].numel() * tensors[name].element_size() for name in order]
        self._body = torch.empty(sum(sizes), dtype=torch.uint8)
        self._views: dict[str, Tensor] = {}
        entries: dict[str, object] = {}
        begin = 0
        for name, size in zip(order, sizes, strict=True):
            tensor, end = tensors[name].detach(), begin + size
            view = self._body[begin:end].view(tensor.dtype).view(tensor.shape)
            view.copy_(tensor)
            self._views[name] = view
            entries[name] = {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            begin = end
        self._entries = entries

    def file(self, metadata: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
        """The parts of a safetensors file: length of the header, header, all tensors."""
        document = {"__metadata__": dict(metadata)} if metadata else {}
        header = json.dumps({**document, **self._entries}, separators=(",", ":")).encode()
        header += b" " * (-(8 + len(header)) % ALIGNMENT)
        return [len(header).to_bytes(8, "little"), header, self._body.numpy().data]

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

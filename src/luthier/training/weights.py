"""safetensors files, written tensor by tensor: the merged weights of a large model are never in memory at once.

The format is a length, a JSON header and the bytes (https://huggingface.co/docs/safetensors); the library's own writer
wants every tensor at the same time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_ALIGNMENT = 8  # of the first tensor's bytes


@dataclass(frozen=True)
class Weight:
    """A tensor that is computed when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    compute: Callable[[], Tensor]

    @property
    def param_count(self) -> int:
        """Numbers in the tensor."""
        return torch.Size(self.shape).numel()

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.param_count * self.dtype.itemsize


@dataclass(frozen=True)
class WeightsFile:
    """One safetensors file that is about to be written."""

    weights: Sequence[Weight]

    def make_header(self) -> bytes:
        """Return everything before the first tensor's bytes."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
        position = 0
        for weight in self.weights:
            offsets = [position, position + weight.size_bytes]
            header[weight.name] = {"dtype": _DTYPES[weight.dtype], "shape": weight.shape, "data_offsets": offsets}
            position = offsets[1]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return struct.pack("<Q", len(text)) + text

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.make_header()) + sum(weight.size_bytes for weight in self.weights)

    def iterate_bytes(self) -> Iterator[memoryview]:
        """Yield the file's bytes in order."""
        yield memoryview(self.make_header())
        for weight in self.weights:
            tensor = weight.compute()
            assert (tensor.dtype, tuple(tensor.shape)) == (weight.dtype, weight.shape), f"{weight.name} changed shape"
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            yield memoryview(flat.numpy())  # type: ignore[arg-type]  # an array is a buffer; typeshed knows from 3.12 on


def hold(tensors: Mapping[str, Tensor]) -> WeightsFile:
    """Return a file of tensors that are in memory, in the order of their names."""
    return WeightsFile(
        [
            Weight(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)  # type: ignore[misc]  # bound now
            for name, tensor in sorted(tensors.items())
        ]
    )


@contextmanager
def read_folder(folder: Path) -> Iterator[dict[str, Weight]]:
    """Yield every weight of a model folder by name, in the order of the files; they are read while the body runs."""
    with ExitStack() as stack:
        weights: dict[str, Weight] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118  it is no mapping
                found = file.get_slice(name)
                weights[name] = Weight(
                    name,
                    _parse_dtype(found.get_dtype()),
                    tuple(found.get_shape()),
                    lambda file=file, name=name: file.get_tensor(name),  # type: ignore[misc]  # bound now
                )
        yield weights


def _parse_dtype(text: str) -> torch.dtype:
    return next(dtype for dtype, name in _DTYPES.items() if name == text)

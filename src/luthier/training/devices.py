"""Where a job computes and in which numbers, and how the same job gives the same bits twice."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version

import torch

from luthier import machine
from luthier.protocol.spec import Device
from luthier.training.failures import HyperparametersFault, MemoryTooSmall

_VERSIONED = ("luthier", "torch", "safetensors")


@dataclass(frozen=True)
class Place:
    """A device and the type of the forward and backward pass. Adapters and optimizer are always fp32."""

    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """The type by its short name."""
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


def choose_place(wanted: Device) -> Place:
    """Resolve ``auto``. Raises HyperparametersFault for a device that this machine does not have."""
    kind = _find_device() if wanted.kind == "auto" else wanted.kind
    if kind not in _list_devices():
        message = f"this machine has no such device, or its torch cannot use it: {kind}"
        raise HyperparametersFault(message, hint="set LUTHIER_DEVICE=auto")
    device = torch.device(kind)
    if wanted.precision == "auto":
        return Place(device, torch.bfloat16 if has_native_bf16(device) else torch.float32)
    return Place(device, torch.bfloat16 if wanted.precision == "bf16" else torch.float32)


def _list_devices() -> list[str]:
    offered = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, is_there in offered.items() if is_there]


def _find_device() -> str:
    return _list_devices()[0]


def has_native_bf16(device: torch.device) -> bool:
    """Return whether matrices multiply faster in bf16 than in fp32.

    On a CPU that takes AVX-512 BF16, AMX or ARM's BF16. Without them torch still computes in bf16, one element at a
    time: a step that takes 3 s in fp32 then takes many minutes.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def require_memory(place: Place, param_count: int, *, trains_all: bool) -> None:
    """Raise MemoryTooSmall when the weights alone, with what AdamW keeps of those that are trained, cannot fit.

    Found before the memory is filled: on a CPU the kernel would end the worker, or another process, without a word.
    Activations come on top, and an adapter's own numbers, which are few.
    """
    bytes_a_parameter = place.dtype.itemsize
    if trains_all:
        # In fp32 a gradient and two moments, and of weights in another type a copy of themselves.
        bytes_a_parameter += 12 if place.dtype == torch.float32 else 16
    needed, there = param_count * bytes_a_parameter, _measure_memory(place.device)
    if needed > there:
        raise MemoryTooSmall(
            f"training needs more memory than there is: {needed / 1e9:.2f} GB for {param_count:,} parameters, "
            f"of {there / 1e9:.2f} GB",
            hint=f"use {'LoRA in place of full training, ' if trains_all else ''}a smaller base model, or a machine with more memory",
        )


def _measure_memory(device: torch.device) -> int:
    """Return the bytes of a device's memory, whoever uses them now; MPS shares the machine's."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else machine.measure_memory()


def make_deterministic(seed: int, threads: int) -> None:
    """Fix everything that could make two runs of one job differ on one kind of machine."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with a workspace of its own
    torch.set_num_threads(threads)  # sums are split by thread, so their number is part of the result
    # Not use_deterministic_algorithms, which does the same and imports torch's compiler for it, in 2 to 3 s.
    torch.set_deterministic_debug_mode("error")
    # Would cost a pass over every new tensor; nothing here reads one before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set through a property
    torch.manual_seed(seed)


def get_versions() -> dict[str, str]:
    """Return what computed: Python and the packages whose version can change a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in _VERSIONED}}

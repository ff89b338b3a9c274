"""The environment of child processes: what they need, by name, and nothing else that the supervisor has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# Programs and shared libraries, language of messages, temporary files, which accelerators may be used.
ALLOWED = (
    "PATH",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
)
THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
OWN_PREFIX = "LUTHIER_"


def make(inherited: Mapping[str, str], *, home: Path, threads: int) -> dict[str, str]:
    """Return the environment of a process that works on users' data: no keys, no proxies, no network."""
    return {
        **{name: inherited[name] for name in ALLOWED if name in inherited},
        **dict.fromkeys(THREAD_LIMITS, str(threads)),
        "HOME": str(home),  # caches and tokens of the person who started the supervisor stay out of reach
        "PYTHONUNBUFFERED": "1",  # the last words of a killed worker are in its log
        "PYTHONNOUSERSITE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }


def make_for_fetching(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that fetches base models: it may need proxies, certificates, a hub token."""
    return {name: value for name, value in inherited.items() if not name.startswith(OWN_PREFIX)}

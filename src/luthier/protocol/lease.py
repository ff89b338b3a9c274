"""The lease file: touched while a supervisor looks after the run. Its text, if any: the seconds it may stay untouched."""

from __future__ import annotations

from pathlib import Path


def touch(path: Path) -> None:
    """Renew the lease for as long as the spec says."""
    path.touch(mode=0o600)
    if path.stat().st_size:
        path.write_bytes(b"")


def grant(path: Path, grace_s: float) -> None:
    """Let the worker go on without a supervisor for ``grace_s`` from now."""
    path.write_text(f"{grace_s:g}")


def read_term_s(path: Path, lease_s: float) -> float:
    """Return how long the file may stay untouched; ``lease_s`` is what the spec says."""
    try:
        return float(path.read_text() or lease_s)
    except (OSError, ValueError):
        return lease_s

"""The installed version."""

from __future__ import annotations


def find_version() -> str:
    """Return the version of the installed distribution, or ``unknown`` when run from bare sources."""
    from importlib.metadata import PackageNotFoundError, version  # 30 ms: only when asked

    try:
        return version("luthier")
    except PackageNotFoundError:
        return "unknown"

"""Fault points: named places in production code where a test can crash the process.

Inert unless the environment arms one: ``LUTHIER_FAULTS="settle.before_commit:3"`` ends the process
(``os._exit``, as SIGKILL would: no handlers, no flush) at the third hit of that point.
"""

from __future__ import annotations

import os
from collections import Counter

EXIT_CODE = 86  # so that a test can tell an armed fault from any other death

_hits: Counter[str] = Counter()


def _parse(text: str) -> dict[str, int]:
    armed = {}
    for item in filter(None, text.split(",")):
        name, _, nth = item.partition(":")
        armed[name] = int(nth or 1)
    return armed


_armed = _parse(os.environ.get("LUTHIER_FAULTS", ""))


def hit(name: str) -> None:
    """Pass the fault point ``name``; end the process when it is armed for this hit."""
    if not _armed:
        return
    _hits[name] += 1
    if _armed.get(name) == _hits[name]:
        os._exit(EXIT_CODE)

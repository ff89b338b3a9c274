"""What this process may use of its machine: a container's limits count, not what the machine is built with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def count_cpus(root: Path = ROOT) -> int:
    """Return how many processors may be used, at least 1: by affinity, and by the quota of each control group above.

    A part of a processor counts for nothing: one thread more than the quota would have all of them halted in turn.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _list_groups(root, "cpu"):
        quota_us, period_us = _read_cpu_quota(folder)
        if quota_us > 0 and period_us > 0:
            usable = min(usable, quota_us // period_us)
    return max(1, usable)


def measure_memory(root: Path = ROOT) -> int:
    """Return how many bytes of memory may be used: the machine's, and no more than each control group above allows."""
    usable_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _list_groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # version 2, version 1
            limit_bytes = next(iter(_read_numbers(folder / name)), 0)
            if limit_bytes > 0:
                usable_bytes = min(usable_bytes, limit_bytes)
    return usable_bytes


def _list_groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folder of this process's control group and of those above it, in both versions (cgroups(7)).

    In a container the path may be one that is not visible there: its own group is then at the top.
    """
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount = top
        elif controller in controllers.split(","):
            mount = top / controller
        else:
            continue
        folder = mount / path.lstrip("/")
        yield folder
        while folder != mount:
            folder = folder.parent
            yield folder


def _read_cpu_quota(folder: Path) -> tuple[int, int]:
    """Return microseconds of processor time, and in which period; 0 where there is no limit."""
    both = _read_numbers(folder / "cpu.max")  # version 2
    if len(both) == 2:  # noqa: PLR2004  quota and period
        return both[0], both[1]
    quota = _read_numbers(folder / "cpu.cfs_quota_us")  # version 1, -1 without a limit
    period = _read_numbers(folder / "cpu.cfs_period_us")
    return (quota[0], period[0]) if quota and period else (0, 0)


def _read_numbers(path: Path) -> list[int]:
    """Return the numbers of a file in the kernel's way of writing; none where it is missing or says ``max``."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []

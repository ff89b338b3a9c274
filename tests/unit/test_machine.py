"""Processors and memory as a container is given them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from luthier import machine

MIB = 1024**2


@pytest.fixture
def write(tmp_path):
    """Return a function that writes files of a kernel's file system, by their paths from /."""

    def write_files(files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return write_files


CONTAINERS = {
    "version 2": {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/memory.max": f"{64 * MIB}\n",
    },
    "version 2, of a group above": {
        "proc/self/cgroup": "0::/luthier.slice/serve.service\n",
        "sys/fs/cgroup/luthier.slice/serve.service/cpu.max": "max 100000\n",
        "sys/fs/cgroup/luthier.slice/serve.service/memory.max": "max\n",
        "sys/fs/cgroup/luthier.slice/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/luthier.slice/memory.max": f"{64 * MIB}\n",
    },
    "version 1, whose path is not visible": {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/0a1b\n3:memory:/docker/0a1b\n1:name=systemd:/docker/0a1b\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{64 * MIB}\n",
    },
}
UNLIMITED = {
    "no control group": {},
    "version 2": {"proc/self/cgroup": "0::/\n"},
    "version 1": {
        "proc/self/cgroup": "4:cpu:/\n3:memory:/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    },
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_machine_when_a_container_limits_it_is_as_large_as_that(write, container):
    root = write(CONTAINERS[container])
    assert machine.count_cpus(root) == 1
    assert machine.measure_memory(root) == 64 * MIB


@pytest.mark.parametrize("kind", UNLIMITED)
def test_machine_when_nothing_limits_it_is_all_that_there_is(write, kind):
    root = write(UNLIMITED[kind])
    assert machine.count_cpus(root) == len(os.sched_getaffinity(0))
    assert machine.measure_memory(root) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_machine_when_bound_to_one_processor_has_that_one():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from luthier import machine; print(machine.count_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"

"""Processes of our own: started behind a gate, recognised again by pid and start time, killed with all their children.

Linux reads ``/proc``. Elsewhere (macOS) ``ps`` answers: start times are then whole seconds, the memory limit
is not enforced and out-of-memory kills are not told from other kills.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

PROC = Path("/proc")
PS_TIMEOUT_S = 5.0

# $1 working directory, $2 address space in KiB or "unlimited", then the command. It waits for one line on
# standard input; when the starter dies before it wrote that line, the pipe closes and nothing is ever run.
_GATE = 'cd "$1" && ulimit -c 0 && { ulimit -v "$2" 2>/dev/null; shift 2; read -r go; } && exec "$@" </dev/null'
_RESTORED_SIGNALS = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Python ignores the first


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which process: a pid alone may belong to another by now, and ticks count from the start of the machine."""

    pid: int
    started_ticks: int
    boot_id: str


@dataclass(frozen=True)
class Exit:
    """How a process ended; neither code nor signal is known for one that is not our child."""

    code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False  # the kernel killed something for memory while this one lived


class Process:
    """A process that this or an earlier supervisor started, with everything that it started in turn."""

    def __init__(self, identity: Identity, *, is_child: bool) -> None:
        self.identity = identity
        self._is_child = is_child
        self._oom_kills = _count_oom_kills()
        self._exit: Exit | None = None

    def find_exit(self) -> Exit | None:
        """Return how it ended, None while it lives. What it left behind of its own children is killed then."""
        if self._exit is None:
            self._exit = self._wait() if self._is_child else self._look()
            if self._exit is not None:
                self._kill_group()
        return self._exit

    def terminate(self) -> None:
        """Ask it to end (SIGTERM to the process itself, which may finish what it does)."""
        if self.find_exit() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.identity.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and its children at once (SIGKILL)."""
        if self.find_exit() is None:
            self._kill_group()

    def _wait(self) -> Exit | None:
        try:
            pid, status = os.waitpid(self.identity.pid, os.WNOHANG)
        except ChildProcessError:
            return Exit()
        if pid == 0:
            return None
        if not os.WIFSIGNALED(status):
            return Exit(code=os.WEXITSTATUS(status))
        number = os.WTERMSIG(status)
        return Exit(signal=number, out_of_memory=number == signal.SIGKILL and _count_oom_kills() > self._oom_kills)

    def _look(self) -> Exit | None:
        return None if is_alive(self.identity) else Exit()

    def _kill_group(self) -> None:
        # A pid stays reserved while a process group bears its number: so unless the pid was given to a
        # newcomer, the group is ours, also after its leader is gone. Only until the machine starts anew, though.
        if self.identity.boot_id != get_boot_id():
            return
        found = find_identity(self.identity.pid)
        if found is None or found == self.identity:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.identity.pid, signal.SIGKILL)


def start(
    command: Sequence[str],
    *,
    directory: Path,
    env: Mapping[str, str],
    log: Path,
    memory_bytes: int | None = None,
    before_run: Callable[[Identity], None] = lambda _: None,
) -> Process:
    """Start a command in a session of its own, its output appended to ``log``.

    ``before_run`` is called with the new process's identity before the command is let go: what it
    makes durable is known whenever the command has run at all. Raises OSError when it cannot be started.
    """
    limit = "unlimited" if memory_bytes is None else str(memory_bytes // 1024)
    gate_read, gate_write = os.pipe()
    with os.fdopen(gate_write, "wb", buffering=0) as gate:
        try:
            pid = os.posix_spawn(
                "/bin/sh",
                ["/bin/sh", "-c", _GATE, "luthier-gate", str(directory), limit, *command],
                dict(env),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, gate_read, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=_RESTORED_SIGNALS,
            )
        finally:
            os.close(gate_read)
        process = Process(find_identity(pid) or Identity(pid, 0, get_boot_id()), is_child=True)
        try:
            before_run(process.identity)
        except BaseException:
            process.kill()
            os.waitpid(pid, 0)
            raise
        with contextlib.suppress(BrokenPipeError):  # it died already; its exit tells
            gate.write(b"go\n")
    return process


def find_identity(pid: int) -> Identity | None:
    """Return the identity of a living process, None when there is none (a zombie is dead)."""
    return _find_in_proc(pid) if PROC.joinpath("self").exists() else _find_by_ps(pid)


@functools.cache
def get_boot_id() -> str:
    """Return what is new whenever the machine has started."""
    if (path := PROC / "sys/kernel/random/boot_id").exists():
        return path.read_text().strip()
    command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
    return subprocess.run(command, capture_output=True, text=True, timeout=PS_TIMEOUT_S, check=True).stdout.strip()


def is_alive(identity: Identity) -> bool:
    """Tell whether this very process still runs."""
    return find_identity(identity.pid) == identity


def _find_in_proc(pid: int) -> Identity | None:
    try:
        stat = PROC.joinpath(str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # the name before may hold spaces and brackets; proc(5)
    state, started_ticks = fields[0], int(fields[19])
    return None if state in "ZX" else Identity(pid, started_ticks, get_boot_id())


def _find_by_ps(pid: int) -> Identity | None:
    found = subprocess.run(
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)],
        env={"LC_ALL": "C", "TZ": "UTC"},
        capture_output=True,
        text=True,
        timeout=PS_TIMEOUT_S,
        check=False,
    )
    state, _, started = found.stdout.strip().partition(" ")
    if not started or state.startswith("Z"):
        return None
    moment = dt.datetime.strptime(started.strip(), "%a %b %d %H:%M:%S %Y").replace(tzinfo=dt.UTC)
    return Identity(pid, int(moment.timestamp()), get_boot_id())


def _count_oom_kills() -> int:
    """Return how many processes the kernel has killed for memory since it started; 0 where it does not tell."""
    try:
        vmstat = PROC.joinpath("vmstat").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in vmstat.splitlines() if line.startswith("oom_kill ")), 0)

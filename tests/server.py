"""A real ``luthier serve`` in its own process, for the tests that talk to it from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier import home as home_dir

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
READY = re.compile(r"Luthier is ready: (http://\S+)")


@dataclass
class Server:
    """A running server: where it is, and its admin key."""

    home: Path
    base_url: str
    api_key: str
    process: subprocess.Popen[str]
    log_path: Path

    def read_log(self) -> str:
        """Return everything that it has printed."""
        return self.log_path.read_text()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the server and wait until it is gone."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(STOP_TIMEOUT_S)


def start_server(home: Path, *, command: str = "serve", environment: dict[str, str] | None = None) -> Server:
    """Start ``luthier serve --port 0``, or ``api``, on a home and return when it listens."""
    log_path = home.with_name(f"{home.name}-serve-{time.time_ns()}.log")
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier.cli", command, "--home", str(home), "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env={**clean_environment(), **(environment or {})},
            start_new_session=True,
        )
    try:
        base_url = _wait_until_ready(process, log_path)
    except BaseException:
        process.kill()
        process.wait(STOP_TIMEOUT_S)
        raise
    credentials = home_dir.find_credentials(home)
    assert credentials is not None, log_path.read_text()
    return Server(home, base_url, credentials.api_key, process, log_path)


def clean_environment() -> dict[str, str]:
    """Return our environment without settings of a Luthier or a client that the developer uses."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("LUTHIER_", "TOGETHER_"))}


def _wait_until_ready(process: subprocess.Popen[str], log_path: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        match = READY.search(log_path.read_text())
        if match:
            return match[1]
        assert process.poll() is None, f"serve ended with {process.returncode}:\n{log_path.read_text()}"
        time.sleep(0.05)
    raise AssertionError(f"serve was not ready within {START_TIMEOUT_S} s:\n{log_path.read_text()}")


@contextlib.contextmanager
def running(home: Path, *, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """Run a server while the body runs."""
    server = start_server(home, environment=environment)
    try:
        yield server
    finally:
        server.stop()

"""The command line as a process, and small real HTTP servers that misbehave on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.config import Config
from luthier.cli.connection import Connection

TIMEOUT_S = 60


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout, which must be one JSON document and nothing else."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a command run with --json: stderr must be one JSON object and stdout empty."""
        assert self.out == ""
        return json.loads(self.err)["error"]


@dataclass
class Cli:
    """Runs ``luthier`` in a process of its own, with an environment that has nothing of the developer's."""

    home: Path
    cwd: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: object, stdin: str = "", **environment: str) -> Result:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LUTHIER_", "NO_COLOR", "FORCE_COLOR"))}
        process = subprocess.run(
            [sys.executable, "-m", "luthier.cli", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=self.cwd,
            env={**clean, "LUTHIER_HOME": str(self.home), "TZ": "UTC", **self.environment, **environment},
        )
        assert "Traceback" not in process.stderr, process.stderr
        return Result(process.returncode, process.stdout, process.stderr)


@pytest.fixture(scope="session")
def make_cli() -> type[Cli]:
    """Make a command line from a home, a folder to run in, and more environment."""
    return Cli


@pytest.fixture
def cli(home, tmp_path) -> Cli:
    """The command line with an empty home, in an empty folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Cli(home, folder)


class Handler(BaseHTTPRequestHandler):
    """Hands every request to the server's ``answer``."""

    protocol_version = "HTTP/1.1"
    server: Peer

    def handle_any(self) -> None:
        self.close_connection = True
        self.server.requests.append(self)
        self.server.answer(self)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, value: object, status: int = 200) -> None:
        """Send a whole answer of JSON."""
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""


class Peer(ThreadingHTTPServer):
    """A server whose answers a test writes."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answer: Callable[[Handler], None], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answer = answer
        self.requests: list[Handler] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that went away is part of the test."""


@contextmanager
def serving(answer: Callable[[Handler], None], port: int = 0) -> Iterator[Peer]:
    """Serve ``answer`` while the body runs; the port is free again afterwards."""
    peer = Peer(answer, port)
    thread = threading.Thread(target=peer.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield peer
    finally:
        peer.shutdown()
        peer.server_close()
        thread.join(timeout=10)


@pytest.fixture
def serve() -> Callable[..., Any]:
    """The context manager that serves what a test answers."""
    return serving


@pytest.fixture
def connect() -> Iterator[Callable[[str], Connection]]:
    """Make connections that are closed at the end."""
    made: list[Connection] = []

    def make(url: str) -> Connection:
        made.append(Connection(Config(url, "lk-test")))
        return made[-1]

    yield make
    for connection in made:
        connection.http.close()

"""Measure an upload on loopback against ``cp`` of the same file on the same disk.

    .venv/bin/python bench/upload.py --size-mb 1024 --rounds 5

Each round copies the file with ``cp``, copies it with ``cp`` and fsync, and uploads it to a real ``luthier api``;
the order changes from round to round and the disk is synced in between. The upload hashes, checks and fsyncs before
it answers, so the second copy is the like one; the first is the bar (at least 40 %).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlencode, urlsplit

MIB = 1024 * 1024
READY = re.compile(rb"Luthier is ready: (http://\S+)")


class Api:
    """A real ``luthier api`` in its own process and home."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "luthier.cli", "api", "--home", str(home), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout
        match = None
        while match is None:
            line = self.process.stdout.readline()
            assert line, "the api ended while starting"
            match = READY.search(line)
        self.base_url = match[1].decode()
        self.key = json.loads((home / "credentials.json").read_bytes())["api_key"]

    def stop(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(timeout=20)

    def request_upload(self, name: str) -> str:
        """Ask for an upload URL."""
        request = urllib.request.Request(
            f"{self.base_url}/v1/files",
            data=urlencode({"file_name": name, "purpose": "fine-tune", "file_type": "jsonl"}).encode(),
            headers={"Authorization": f"Bearer {self.key}"},
        )
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            opener.open(request, timeout=30)
        except urllib.error.HTTPError as answer:
            assert answer.code == 302, answer.read()
            return str(answer.headers["Location"])
        raise AssertionError("no redirect")

    def reset_peak(self) -> int:
        """Forget the peak of memory; return what is used now, in bytes."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.read_memory("VmRSS")

    def read_memory(self, field: str) -> int:
        """Return a field of /proc/PID/status in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        assert match
        return int(match[1]) * 1024


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def put(url: str, path: Path) -> None:
    """Send a file with sendfile(2): the cheapest client there is, so that the server is what is measured."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection, path.open("rb") as file:
        head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {path.stat().st_size}\r\n\r\n"
        connection.sendall(head.encode())
        connection.sendfile(file)
        response = HTTPResponse(connection, method="PUT")
        response.begin()
        assert response.status == 200, response.read()
        response.read()


def copy(source: Path, target: Path, *, sync: bool) -> None:
    """Copy with cp; with ``sync`` wait until it is on the disk."""
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)
    if sync:
        fd = os.open(target, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def measure(action: Callable[[], None], size_bytes: int) -> float:
    """Return MB/s of an action that moves so many bytes."""
    started = time.perf_counter()
    action()
    return size_bytes / 1e6 / (time.perf_counter() - started)


def make_source(path: Path, size_mb: int) -> None:
    """Write bytes that do not compress."""
    block = os.urandom(MIB)
    with path.open("wb") as file:
        for _ in range(size_mb):
            file.write(block)


def main() -> None:
    """Run the rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, default=None, help="where to work: decides which disk is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="bench-upload-") as folder:
        source, target = Path(folder) / "source.jsonl", Path(folder) / "copy"
        make_source(source, options.size_mb)
        api = Api(Path(folder) / "home")
        try:
            run_rounds(api, source, target, options.rounds)
        finally:
            api.stop()


def run_rounds(api: Api, source: Path, target: Path, rounds: int) -> None:
    """Measure each way in each round, in changing order; print every figure, then the medians."""
    put(api.request_upload(source.name), source)  # a first upload warms what both sides allocate once
    actions: dict[str, Callable[[], None]] = {
        "cp": lambda: copy(source, target, sync=False),
        "cp+fsync": lambda: copy(source, target, sync=True),
        "upload": lambda: put(api.request_upload(source.name), source),
    }
    speeds: dict[str, list[float]] = {name: [] for name in actions}
    growth = 0
    names = list(actions)
    for number in range(rounds):
        for name in names[number % 3 :] + names[: number % 3]:
            target.unlink(missing_ok=True)
            os.sync()
            before = api.reset_peak()
            speeds[name].append(measure(actions[name], source.stat().st_size))
            growth = max(growth, api.read_memory("VmHWM") - before)
        print("  ".join(f"{name} {values[-1]:.0f} MB/s" for name, values in speeds.items()))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print("median  " + "  ".join(f"{name} {value:.0f} MB/s" for name, value in medians.items()))
    print(f"upload / cp        {medians['upload'] / medians['cp']:.2f}")
    print(f"upload / cp+fsync  {medians['upload'] / medians['cp+fsync']:.2f}")
    print(f"api peak memory    +{growth / MIB:.0f} MiB over {api.read_memory('VmRSS') / MIB:.0f} MiB")


if __name__ == "__main__":
    main()

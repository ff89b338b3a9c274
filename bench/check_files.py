"""Measure ``luthier.datasets.check`` against the official client's ``check_file`` on one conversation file.

    .venv/bin/python bench/check_files.py --size-mb 300 --rounds 3

Both sides read the same file, each in an interpreter of its own, in turns, with the page cache warm. Memory is the
sum of the proportional set sizes (PSS) of a side's processes, looked at every 20 ms. The bar: three times the
client's speed, less than 150 MB in all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MB = 1_000_000
PEER_REQUIREMENT = "together==1.5.35"
PEER_VENV = Path(__file__).resolve().parents[1] / ".cache" / "bench" / "together-1.5.35"
SAMPLE_EVERY_S = 0.02
TEXT = (
    "a after all and answer around as ask at batch because been between but can card check checkpoint could data "
    "deposit does each epoch error event every file find first for from gradient has have hint how if in is it job "
    "key learning line long loss made message model more most no not now of on one only or other our out over price "
    "rate refund row run same see server set she should so some step such take than that the their then there these "
    "they this time to token training two under up use very was way we what when where which who why will with would "
    "you your Zürich café naïve — “quoted” 😀 123 4,096 0.5% don't it's `code`"
)
WORDS = TEXT.split()

# Each prints one JSON line: seconds, rows, whether the file passed.
OUR_SIDE = """
import json, sys, time
from pathlib import Path
from luthier.datasets.check import check_file
start = time.perf_counter()
report = check_file(Path(sys.argv[1]))
print(json.dumps([time.perf_counter() - start, report.nlines, report.valid]))
"""
PEER_SIDE = """
import json, sys, time
from together.utils.files import check_file
start = time.perf_counter()
report = check_file(sys.argv[1])
print(json.dumps([time.perf_counter() - start, report["num_samples"], report["is_check_passed"]]))
"""


def main() -> None:
    """Generate the file, run both sides in turns, print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size-mb", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ascii", action="store_true", help="write other characters as \\u escapes")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--peer-python", type=Path, help=f"an interpreter that has {PEER_REQUIREMENT}")
    peer.add_argument(
        "--peer-venv", type=Path, default=PEER_VENV, help="a folder where to make one, kept for the next time"
    )
    options = parser.parse_args()
    peer_python = options.peer_python or prepare_peer(options.peer_venv)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conversations.jsonl"
        rows = write_conversations(path, options.size_mb * MB, seed=options.seed, ensure_ascii=options.ascii)
        print(f"{path.stat().st_size / MB:.0f} MB, {rows} conversations")
        ours, theirs = [], []
        for number in range(1, options.rounds + 1):
            their_time, their_peak = measure([str(peer_python), "-c", PEER_SIDE, str(path)], rows)
            our_time, our_peak = measure([sys.executable, "-c", OUR_SIDE, str(path)], rows)
            theirs.append(their_time)
            ours.append(our_time)
            print(
                f"round {number}: client {their_time:.2f} s, {their_peak / MB:.0f} MB; "
                f"luthier {our_time:.2f} s, {our_peak / MB:.0f} MB; {their_time / our_time:.2f} times as fast"
            )
    print(f"medians: {statistics.median(theirs) / statistics.median(ours):.2f} times as fast")


def prepare_peer(folder: Path) -> Path:
    """Make a virtual environment with the official client, unless it is there; return its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PEER_REQUIREMENT], check=True)
    return python


def write_conversations(path: Path, size_bytes: int, *, seed: int, ensure_ascii: bool) -> int:
    """Write at least ``size_bytes`` of conversations, the same for the same seed; return how many."""
    generator = random.Random(seed)
    rows = written = 0
    with path.open("wb") as file:
        while written < size_bytes:
            line = json.dumps(make_conversation(generator), ensure_ascii=ensure_ascii).encode() + b"\n"
            written += file.write(line)
            rows += 1
    return rows


def make_conversation(generator: random.Random) -> dict[str, list[dict[str, str]]]:
    """Make one conversation of one to five exchanges, half of them with a system message."""
    messages = []
    if generator.random() < 0.5:
        messages.append({"role": "system", "content": make_text(generator, 5, 40)})
    for _ in range(generator.randint(1, 5)):
        messages.append({"role": "user", "content": make_text(generator, 3, 60)})
        messages.append({"role": "assistant", "content": make_text(generator, 10, 200)})
    return {"messages": messages}


def make_text(generator: random.Random, least: int, most: int) -> str:
    """Make a text of some words in lines."""
    words = generator.choices(WORDS, k=generator.randint(least, most))
    return "\n".join(" ".join(words[start : start + 25]) for start in range(0, len(words), 25))


def measure(command: list[str], expected_rows: int) -> tuple[float, int]:
    """Run one side; return its seconds and the greatest memory of it and its children, in bytes."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(read_pss, list_tree(process.pid))))
            time.sleep(SAMPLE_EVERY_S)
        assert process.stdout is not None
        seconds, rows, passed = json.loads(process.stdout.read())
    assert (rows, passed) == (expected_rows, True), f"{rows} of {expected_rows} rows, passed: {passed}"
    return seconds, peak


def list_tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for parent in found:  # grows while it is walked
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def read_pss(pid: int) -> int:
    """Return the proportional set size of a process in bytes; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()

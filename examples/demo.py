"""The main job on real input, through the real service, with the commands that a user types.

Starts `luthier serve` in ./luthier-demo, fine-tunes SmolLM2-135M-Instruct on examples/support, and
shows what the model answers before and after. Run it with `make demo`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from luthier.protocol import layout, spec

ROOT = Path(__file__).resolve().parents[1]
LUTHIER = Path(sys.executable).with_name("luthier")
DATA = Path("examples/support")
HOME = ROOT / "luthier-demo"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SERVE_TIMEOUT_S = 60

console = Console(highlight=False)


def main() -> int:
    """Run the demo; return the exit status."""
    began = time.monotonic()
    os.chdir(ROOT)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LUTHIER_")} | {"LUTHIER_HOME": str(HOME)}
    with _serving(environment):
        job = _train(environment)
        title("What it cost, and where it is")
        run(environment, "ft", "get", job)
        run(environment, "billing", "statement")
        model_dir = HOME / "model"
        shutil.rmtree(model_dir, ignore_errors=True)
        run(environment, "ft", "download", job, "--checkpoint", "merged", "-o", str(model_dir))
    base_model = spec.read_spec(HOME / "runs" / job / layout.SPEC).base_model
    title("Before and after, on questions that are in no training row")
    _compare(Path(base_model.path), find_weights(model_dir))
    _say_goodbye(job, model_dir, time.monotonic() - began)
    return 0


@contextmanager
def _serving(environment: dict[str, str]) -> Iterator[None]:
    title("Start the service")
    show_command("serve", "--home", HOME.name, "--port", "0")
    process = subprocess.Popen(
        [LUTHIER, "serve", "--home", str(HOME), "--port", "0"],
        env=environment, stdout=subprocess.PIPE, stderr=(ROOT / "luthier-demo.log").open("w"), text=True,
    )  # fmt: skip
    try:
        _wait_until_ready(process)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def _wait_until_ready(process: subprocess.Popen[str]) -> None:
    timer = threading.Timer(SERVE_TIMEOUT_S, process.kill)
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            # The key is for whoever runs the service; a demo's output is often pasted.
            console.print("  " + re.sub(r"(lk-\w{4})\S+", r"\1…", line.rstrip()), style="dim", markup=False)
            if line.strip().startswith("stop"):
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return
    finally:
        timer.cancel()
    sys.exit(f"the service did not start; see {ROOT / 'luthier-demo.log'}")


def _train(environment: dict[str, str]) -> str:
    title("Check the data: every error with its line, before anything is uploaded")
    run(environment, "files", "check", str(DATA / "train.jsonl"), str(DATA / "validation.jsonl"))
    title("Upload, exact price, train, watch")
    run(
        environment, "ft", "create", str(DATA / "train.jsonl"), "--model", MODEL,
        "--validation-file", str(DATA / "validation.jsonl"), "--n-evals", "1", "--n-epochs", "1",
        "--batch-size", "1", "--max-seq-length", "128", "--learning-rate", "2e-3", "--warmup-ratio", "0.1",
        "--lora-r", "16", "--suffix", "support", "--yes", "--watch",
    )  # fmt: skip
    job: str = read_json(environment, "ft", "list")["data"][-1]["id"]
    title("The event log, as it stays")
    run(environment, "list-events", job)
    return job


def _compare(base_dir: Path, tuned_dir: Path) -> None:
    command = [sys.executable, "examples/ask.py", str(DATA / "held_out.jsonl"), str(base_dir), str(tuned_dir)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    table = Table(show_lines=True, expand=True)
    for heading in ("question", "before", "after"):
        table.add_column(heading, ratio=1 if heading == "question" else 2)
    for line in result.stdout.splitlines():
        asked = json.loads(line)
        table.add_row(asked["question"], *asked["answers"])
    console.print(table)


def find_weights(folder: Path) -> Path:
    """Return the folder at or under ``folder`` that holds the weights."""
    return next(folder.rglob("config.json")).parent


def _say_goodbye(job: str, model_dir: Path, elapsed_s: float) -> None:
    title(f"Done in {elapsed_s / 60:.1f} minutes")
    home = HOME.relative_to(ROOT)
    for line in (
        f"  the model      {model_dir.relative_to(ROOT)}",
        f"  everything     {home} (database, files, run directories)",
        f"  go on          .venv/bin/luthier serve --home {home}",
        f"                 LUTHIER_HOME={home} .venv/bin/luthier list-events {job}",
        f"                 LUTHIER_HOME={home} .venv/bin/luthier ft create YOUR.jsonl --model {MODEL} --watch",
        "  your own data  docs/guides/data.md",
    ):
        console.print(line, markup=False)


def title(text: str) -> None:
    """Print a heading."""
    console.print(f"\n[bold]{text}[/bold]")


def show_command(*arguments: str) -> None:
    """Print a command as the user would type it."""
    console.print("$ luthier " + " ".join(arguments), style="cyan", markup=False)


def run(environment: dict[str, str], *arguments: str) -> None:
    """Run a luthier command in view; end the demo with its status when it fails."""
    show_command(*arguments)
    status = subprocess.run([LUTHIER, *arguments], env=environment, check=False).returncode
    if status:
        sys.exit(status)


def read_json(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """Run a luthier command with --json and return what it printed."""
    result = subprocess.run([LUTHIER, *arguments, "--json"], env=environment, check=True, capture_output=True)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


if __name__ == "__main__":
    sys.exit(main())

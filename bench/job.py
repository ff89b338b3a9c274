"""Measure a whole job against a plain TRL script with the same settings.

    .venv/bin/python bench/job.py --rounds 2

96 conversations of very different lengths, SmolLM2-135M-Instruct, LoRA on every linear layer, one epoch. Ours is the
command `luthier ft create FILE --watch` against a running service, from its start to its end: check, upload, the
server's own check, tokenising, price, queue, training, adapter and merged weights as archives in the store. TRL's is
``bench/trl_sft.py``, up to the saved adapter. Both find the base model on the disk. The sides take turns, and each
round has rows of its own, so that nothing is cached. The bar: ours takes at most 0.6 of TRL's time.

TRL computes in bf16 unless told otherwise. On a CPU without instructions for it one step takes an hour, so there it is
told to use fp32, as our worker does by itself; ``--trl-precision default`` keeps its default everywhere.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from luthier import machine
from luthier.catalog.schemas import FetchOrder, FetchResult
from luthier.protocol import journal, layout
from luthier.training.devices import has_native_bf16

ROOT = Path(__file__).resolve().parents[1]
LUTHIER = Path(sys.executable).with_name("luthier")
CACHE = ROOT / ".cache" / "bench"
TRL_PACKAGES = ("trl==1.16.0", "torch==2.13.0", "transformers==5.23.0", "peft==0.21.2")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROWS, SEED = 96, 7
BATCH_SIZE, RANK, LEARNING_RATE, MAX_LENGTH = 8, 8, 2e-4, 1024
BAR = 0.6
WORDS = """
the a of to and in is it you that for on with as are this be at or from your can we if not by when which there
use file model time job step data first then after before result value change check number row line error
server answer question small large simple better other each every because while without between many few more
most
""".split()  # noqa: SIM905  as a list it would take a line a word


@dataclass(frozen=True)
class Result:
    """One side's job."""

    wall_s: float
    losses: list[float]


def make_rows(median_words: int, seed: int) -> list[tuple[str, str]]:
    """Return questions and answers; answers have log-normal lengths: half below the median, some many times as long."""
    rng = random.Random(seed)

    def make_text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    def draw_answer_words() -> int:
        return min(400, max(4, round(math.exp(rng.gauss(math.log(median_words), 0.9)))))

    return [(make_text(rng.randint(5, 25)), make_text(draw_answer_words())) for _ in range(ROWS)]


def fetch_model(folder: Path, name: str) -> Path:
    """Return the folder of a built-in base model, fetched into ``folder`` once."""
    folder.mkdir(parents=True, exist_ok=True)
    order, result = folder / "order.json", folder / "result.json"
    if not result.exists():
        order.write_bytes(msgspec.json.encode(FetchOrder(name=name, source="builtin", reference=name)))
        places = ["--models-dir", str(folder), "--private-dir", str(CACHE / "home"), "--result", str(result)]
        subprocess.run([sys.executable, "-m", "luthier.catalog", "fetch", str(order), *places], check=True)
    fetched = msgspec.json.decode(result.read_bytes(), type=FetchResult).fetched
    assert fetched is not None, result.read_text()
    return Path(fetched.path)


def make_trl_python() -> Path:
    """Return the Python of TRL's environment, made once."""
    folder = CACHE / "trl"
    if not (folder / "bin" / "trl").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *TRL_PACKAGES], check=True)
    return folder / "bin" / "python"


@contextmanager
def serve() -> Iterator[dict[str, str]]:
    """Run the service in a home of its own, with the base model fetched; give the environment of its commands."""
    home = CACHE / "home"
    shutil.rmtree(home, ignore_errors=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LUTHIER_")} | {"LUTHIER_HOME": str(home)}
    log = (CACHE / "serve.log").open("w")
    command = [str(LUTHIER), "serve", "--home", str(home), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        next(line for line in process.stdout if line.strip().startswith("stop"))
        warm_up = CACHE / "warm-up.jsonl"
        warm_up.write_text('{"text": "a row, for the base model to be fetched"}\n')
        subprocess.run([LUTHIER, "ft", "estimate", warm_up, "--model", MODEL], env=environment, check=True)
        yield environment
    finally:
        process.terminate()
        process.wait(timeout=60)


def run_ours(environment: dict[str, str], data: Path) -> Result:
    """Create a job from a local file and wait for its end; rows are not packed, so that both take the same steps."""
    settings = {
        "model": MODEL,
        "batch-size": BATCH_SIZE,
        "lora-r": RANK,
        "learning-rate": LEARNING_RATE,
        "max-seq-length": MAX_LENGTH,
        "random-seed": SEED,
    }
    arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    began = time.monotonic()
    command = [str(LUTHIER), "ft", "create", str(data), *arguments, "--no-packing", "--yes", "--watch"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall_s = time.monotonic() - began
    directory = max((Path(environment["LUTHIER_HOME"]) / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    messages = [message for _, message in journal.read(directory / layout.JOURNAL)[0]]
    print_phases(messages, wall_s)
    return Result(wall_s, [message.loss for message in messages if isinstance(message, journal.Metric)])


def print_phases(messages: list[journal.Message], wall_s: float) -> None:
    """Tell where our time went."""
    at = {type(message): message.at for message in messages}
    steps = [message for message in messages if isinstance(message, journal.Metric)]
    step_s, tokens = sum(step.step_s for step in steps), sum(step.tokens for step in steps)
    load_s = at[journal.ModelLoaded] - at[journal.Started]
    export_s = at[journal.Finished] - at[journal.Exporting]
    rest_s = wall_s - step_s - load_s - export_s
    print(
        f"  luthier: {tokens} tokens in {step_s:.1f} s of steps, {tokens / step_s:.0f} tokens/s; load {load_s:.1f} s, "
        f"export {export_s:.1f} s, everything else {rest_s:.1f} s",
        flush=True,
    )


def run_trl(python: Path, model: Path, data: Path, threads: int, precision: str) -> Result:
    """Train with TRL on the same rows; prompt and completion, so that the same tokens count for the loss."""
    settings = {
        "model": model,
        "data": data,
        "out": CACHE / "trl-out",
        "batch-size": BATCH_SIZE,
        "rank": RANK,
        "max-length": MAX_LENGTH,
        "threads": threads,
        "seed": SEED,
        "learning-rate": LEARNING_RATE,
        "precision": precision,
    }
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(CACHE / "hf"), "TQDM_DISABLE": "1"}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # as our worker has it: both sides share their cores with others alike
    shutil.rmtree(CACHE / "hf", ignore_errors=True)  # a prepared data set in the cache would spare TRL its work
    began = time.monotonic()
    script = str(ROOT / "bench" / "trl_sft.py")
    done = subprocess.run([python, script, *arguments], env=environment, stdout=subprocess.PIPE, check=True, text=True)
    wall_s = time.monotonic() - began
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return Result(wall_s, json.loads(line.removeprefix("RESULT "))["losses"])


def write_data(rows: list[tuple[str, str]]) -> tuple[Path, Path]:
    """Write the rows in both sides' formats."""
    ours, theirs = CACHE / "conversations.jsonl", CACHE / "prompts.jsonl"
    with ours.open("w") as our_file, theirs.open("w") as their_file:
        for question, answer in rows:
            user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
            print(json.dumps({"messages": [user, assistant]}), file=our_file)
            print(json.dumps({"prompt": [user], "completion": [assistant]}), file=their_file)
    return ours, theirs


def main() -> int:
    """Run the rounds and print both sides; exit 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=machine.count_cpus())
    parser.add_argument("--median-words", type=int, default=60, help="of an answer; fewer for a slow machine")
    parser.add_argument("--side", choices=["both", "luthier", "trl"], default="both")
    parser.add_argument("--trl-precision", choices=["auto", "default", "fp32"], default="auto")
    options = parser.parse_args()
    precision = options.trl_precision
    if precision == "auto":
        precision = "default" if has_native_bf16(torch.device("cpu")) else "fp32"
    CACHE.mkdir(parents=True, exist_ok=True)
    model = fetch_model(CACHE / "models", MODEL)
    python = make_trl_python() if options.side != "luthier" else None
    ours: list[Result] = []
    theirs: list[Result] = []
    with ExitStack() as stack:
        environment = stack.enter_context(serve()) if options.side != "trl" else None
        for number in range(options.rounds):
            data, trl_data = write_data(make_rows(options.median_words, SEED + number))
            if environment is not None:
                ours.append(run_ours(environment, data))
                print(f"luthier {ours[-1].wall_s:.1f} s, {describe(ours[-1])}", flush=True)
            if python is not None:
                theirs.append(run_trl(python, model, trl_data, options.threads, precision))
                print(f"trl ({precision}) {theirs[-1].wall_s:.1f} s, {describe(theirs[-1])}", flush=True)
    if not (ours and theirs):
        return 0
    ratio = statistics.median(one.wall_s for one in ours) / statistics.median(one.wall_s for one in theirs)
    print(f"ratio {ratio:.2f}; the bar is {BAR}")
    return 0 if ratio <= BAR else 1


def describe(result: Result) -> str:
    """Return what the losses did: orders differ, so single steps do not compare."""
    mean = statistics.mean(result.losses)
    return f"{len(result.losses)} steps, loss {result.losses[0]:.3f} to {result.losses[-1]:.3f}, mean {mean:.3f}"


if __name__ == "__main__":
    sys.exit(main())

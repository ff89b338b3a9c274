"""``python -m luthier.datasets``: check or tokenise one file as a process of its own, under a memory limit.

Exit codes: 0, the result file is written (a file with errors has a report too); 3, tokenising found the data at
fault, and the result file says how; anything else is the machine's fault, with a line on stderr.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
from pathlib import Path

import msgspec

from luthier.datasets import check
from luthier.datasets.publish import publish
from luthier.errors import InvalidRequest

EXIT_MACHINE = 1
EXIT_DATA = 3


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    options = _make_parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except MemoryError:
        sys.stderr.write("out of memory: the limit is too low for this file, or the machine is short of it\n")
        return EXIT_MACHINE
    except (OSError, check.CheckFailed) as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_MACHINE
    return code


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m luthier.datasets")
    commands = parser.add_subparsers(required=True)

    check_parser = commands.add_parser("check", help="check a file and write a report")
    check_parser.add_argument("path", type=Path)
    check_parser.add_argument("--out", type=Path, required=True)
    check_parser.add_argument("--memory-bytes", type=int)
    check_parser.set_defaults(run=_check)

    part_parser = commands.add_parser("check-part", help="check every n-th range of a file (used by check itself)")
    part_parser.add_argument("path", type=Path)
    part_parser.add_argument("first", type=int)
    part_parser.add_argument("step", type=int)
    part_parser.set_defaults(run=_check_part)

    tokenise_parser = commands.add_parser("tokenise", help="turn a file into a token file")
    tokenise_parser.add_argument("path", type=Path)
    tokenise_parser.add_argument("--model-dir", type=Path, required=True)
    tokenise_parser.add_argument("--max-seq-length", type=int, required=True)
    tokenise_parser.add_argument("--train-on-inputs", choices=["auto", "true", "false"], required=True)
    tokenise_parser.add_argument("--out", type=Path, required=True)
    tokenise_parser.add_argument("--result", type=Path, required=True)
    tokenise_parser.add_argument("--memory-bytes", type=int)
    tokenise_parser.set_defaults(run=_tokenise)
    return parser


def _check(options: argparse.Namespace) -> int:
    processes = check.count_processes(options.path.stat().st_size)
    if options.memory_bytes:
        # Children inherit the limit, which counts for each alone: an equal share each keeps the sum below it.
        _limit_memory(options.memory_bytes // (processes + 1 if processes > 1 else 1))
    report = check.check_file(options.path, processes=processes)
    _write_json(options.out, report)
    return 0


def _check_part(options: argparse.Namespace) -> int:
    # Whoever started this process decides when it ends; a closed pipe or Ctrl-C ends it without a traceback.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for findings in check.check_every_nth_range(options.path, options.first, options.step):
        sys.stdout.buffer.write(msgspec.json.encode(findings) + b"\n")
        sys.stdout.buffer.flush()
    return 0


def _tokenise(options: argparse.Namespace) -> int:
    from luthier.datasets import tokenise  # noqa: PLC0415 - tokenizers and jinja2 come with the extra "train" only

    if options.memory_bytes:
        _limit_memory(options.memory_bytes)
    try:
        counts = tokenise.tokenise_file(
            options.path,
            options.model_dir,
            options.out,
            max_seq_length=options.max_seq_length,
            train_on_inputs="auto" if options.train_on_inputs == "auto" else options.train_on_inputs == "true",
        )
    except InvalidRequest as error:
        _write_json(options.result, {"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        return EXIT_DATA
    _write_json(options.result, {"counts": counts})
    return 0


def _limit_memory(limit_bytes: int) -> None:
    """Bound what this process may allocate.

    RLIMIT_DATA counts private writable memory: heap, arenas, thread stacks. RLIMIT_AS would also count
    reserved address space and mapped files, and end healthy processes that have threads.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, hard))


def _write_json(path: Path, value: object) -> None:
    with publish(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


if __name__ == "__main__":
    sys.exit(main())

"""``python -m luthier.catalog fetch ORDER.json --models-dir DIR --private-dir DIR --result RESULT.json``: fetch one base model.

Exit 0: RESULT holds ``fetched``. Exit 3: it holds ``error``, the reason in words. Both go to
``service.record_fetch`` as they are; any other end says nothing about the model.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

import msgspec

from luthier.catalog.refusal import FetchRefused
from luthier.catalog.schemas import Fetched, FetchError, FetchOrder, FetchResult

EXIT_REFUSED = 3


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m luthier.catalog", description=__doc__)
    command = parser.add_subparsers(required=True).add_parser("fetch", help="fetch one base model")
    command.add_argument("order", type=Path)
    command.add_argument("--models-dir", type=Path, required=True)
    command.add_argument("--private-dir", type=Path, required=True, help="no model is taken from there")
    command.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    order = msgspec.json.decode(args.order.read_bytes(), type=FetchOrder)
    answer = _answer(order, args.models_dir, args.private_dir)
    result = (
        FetchResult(order=order, fetched=answer)
        if isinstance(answer, Fetched)
        else FetchResult(order=order, error=answer)
    )
    temporary = args.result.with_name(f".{args.result.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(result))
    temporary.replace(args.result)
    return EXIT_REFUSED if result.error else 0


def _answer(order: FetchOrder, models_dir: Path, private_dir: Path) -> Fetched | FetchError:
    place = order.reference if order.source == "builtin" else f"{order.source} {order.reference}"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # nobody watches, and the log is for people
    try:
        from luthier.catalog import fetch  # noqa: PLC0415  the extra may be missing, which is told below

        return fetch.fetch(order, models_dir, private_dir=private_dir)
    except FetchRefused as refusal:
        return FetchError(refusal.code, f"{place}: {refusal.message}", refusal.hint, refusal.is_final)
    except ModuleNotFoundError as error:
        return FetchError(
            "extra_missing",
            f"{place}: base models cannot be fetched by this Python, which has no {error.name}",
            "install luthier[train] there, or name a Python that has it in LUTHIER_WORKER_PYTHON",
            is_final=True,
        )
    except OSError as error:
        hint = f"free some space under {models_dir}" if error.errno == errno.ENOSPC else None
        return FetchError("model_storage_failed", f"{place}: {error}", hint, is_final=False)


if __name__ == "__main__":
    sys.exit(main())

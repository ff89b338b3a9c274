"""From data on disk to a job that is queued: judge the request, check, upload, wait for validation, price, ask, create."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.text import Text

from luthier.cli import checks, job_views, uploading
from luthier.cli.connection import Connection
from luthier.cli.exits import Exit, Failure
from luthier.cli.output import Output, as_dict
from luthier.cli.text import NANOS, format_count, format_nanos, format_size

POLL_FIRST_S, POLL_MAX_S = 0.2, 2.0
VALIDATION_MAX_S = 2 * 3600.0  # the server's own limit is half an hour a try, three tries
ESTIMATE_MAX_S = 4 * 3600.0  # tokenising 25 GB takes its time, and so does fetching a base model
NO_PRICE = {
    "train_file_invalid": "with these parameters nothing in the training file can be trained on",
    "eval_file_invalid": "with these parameters nothing in the validation file can be evaluated",
}
DATA_SUFFIXES = frozenset({".jsonl", ".json", ".parquet", ".txt", ".csv"})


@dataclass(frozen=True)
class Offer:
    """A job that could be started: the body that asks for it, its parameters as it will have them, its price."""

    body: dict[str, Any]
    parameters: dict[str, Any]
    price: dict[str, Any]


def create(
    output: Output, connection: Connection, body: dict[str, Any], training: str, validation: str | None, *, yes: bool
) -> dict[str, Any]:
    """Lead the user from files to a created job, and return the job. Ends the command when the answer is no."""
    offer = make_offer(output, connection, body, training, validation)
    if not output.as_json:
        output.note("")
        output.show_beside([*job_views.list_parameters(offer.parameters), ("", ""), *describe_price(offer.price)])
        output.note("")
    if not yes:
        output.require_start("Start this job?")
    return as_dict(connection.post("/v1/fine-tunes", offer.body, idempotency_key=uuid.uuid4().hex))


def make_offer(
    output: Output, connection: Connection, body: dict[str, Any], training: str, validation: str | None
) -> Offer:
    """Return the priced job. The server judges every parameter before a file is checked or sent.

    Raises Failure for wrong parameters, all at once; for files that are missing or not valid; without a price.
    """
    files = {"training_file": training, **({"validation_file": validation} if validation else {})}
    paths = {field: path for field, text in files.items() if (path := find_path(text))}
    parameters = _resolve(output, connection, {**body, **files})
    priced = {**body, **_provide_files(output, connection, files, paths)}
    return Offer(priced, parameters, _estimate(output, connection, priced))


def _resolve(output: Output, connection: Connection, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that the job will have, and tell what has no effect."""
    resolved = as_dict(connection.post("/api/fine-tunes/resolve", body))
    for warning in resolved.get("warnings") or []:
        output.note(f"warning: {warning}", style="yellow")
    return as_dict(resolved.get("hyperparameters"))


def _provide_files(
    output: Output, connection: Connection, files: Mapping[str, str], paths: Mapping[str, Path]
) -> dict[str, str]:
    """Return the ids of validated files by field; the local ones (``paths``) are uploaded first.

    All are checked before the first is sent, the server's own as well.
    """
    for field, text in files.items():
        if field in paths:
            checks.require_valid(output, paths[field])
        else:
            file = _wait_until_valid(output, connection, text, name=text)
            checks.show_beside(output, text, {"bytes": file.get("bytes"), **as_dict(file.get("validation_report"))})
    ids = {}
    for field, text in files.items():
        ids[field] = _upload(output, connection, paths[field]) if field in paths else text
    for field in paths:
        _wait_until_valid(output, connection, ids[field], name=files[field])
    return ids


def find_path(text: str) -> Path | None:
    """Return the local file that ``text`` names, or None when it is a file's id.

    Raises Failure when it looks like a path and nothing is there.
    """
    path = Path(text)
    if path.exists() or "/" in text or path.suffix.lower() in DATA_SUFFIXES:
        checks.require_file(path)
        return path
    return None


def _upload(output: Output, connection: Connection, path: Path) -> str:
    with output.progress(f"Uploading {path.name}") as advance:
        uploaded = uploading.upload(connection, path, purpose="fine-tune", on_progress=advance)
    file_id = str(uploaded.file["id"])
    size = format_size(path.stat().st_size)
    output.note(
        f"{path}: " + (f"uploaded, {size}" if uploaded.is_new else "the server has it already") + f"  {file_id}"
    )
    return file_id


def _wait_until_valid(output: Output, connection: Connection, file_id: str, *, name: str) -> dict[str, Any]:
    """Return the file once the server has checked it. Raises Failure, after its errors were printed, when not valid."""

    def ask(label: Callable[[str], None]) -> dict[str, Any] | None:
        file = as_dict(connection.get(f"/v1/files/{quote(file_id, safe='')}"))
        status = file.get("processing_status")
        label(f"The server checks {name} ({str(status).lower()})")
        return file if status in {"COMPLETED", "FAILED", "INVALID_FORMAT"} else None

    file = _poll(output, ask, first_label=f"The server checks {name}", limit_s=VALIDATION_MAX_S)
    if file["processing_status"] == "COMPLETED":
        return file
    report = as_dict(file.get("validation_report"))
    if file["processing_status"] == "INVALID_FORMAT":
        checks.show_beside(output, name, report)
        raise Failure(
            "invalid_file",
            f"{name} is not valid: {format_count(report.get('error_count') or 1, 'error')}",
            exit_code=Exit.NEGATIVE,
            hint=f"see all errors with: luthier files get {file_id}",
        )
    raise Failure(
        "check_failed",
        f"the server could not check {name}: {report.get('error') or 'no reason given'}",
        exit_code=Exit.SERVER,
        hint=f"see luthier files get {file_id}; then delete the file and upload it again",
    )


def _estimate(output: Output, connection: Connection, body: dict[str, Any]) -> dict[str, Any]:
    """Return the exact price and token counts; waits while the server counts, or fetches the base model."""

    def ask(label: Callable[[str], None]) -> dict[str, Any] | None:
        try:
            return as_dict(connection.post("/v1/fine-tunes/estimate-price", body, read_timeout_s=180.0))
        except Failure as failure:
            if failure.code != "estimate_not_ready":
                raise
            label(failure.message)
            return None

    price = _poll(output, ask, first_label="Counting tokens", limit_s=ESTIMATE_MAX_S)
    if not price.get("estimation_available"):
        reason = price.get("unavailable_reason")
        raise Failure(
            "no_estimate",
            f"there is no price: {NO_PRICE.get(str(reason), reason)}",
            exit_code=Exit.REFUSED,
            hint="rows that are longer than --max-seq-length are cut, and one without its answer teaches nothing",
        )
    return price


def describe_price(price: dict[str, Any]) -> list[tuple[str, str | Text]]:
    """Return token counts and price as names and values."""
    train, evals = price.get("estimated_train_token_count") or 0, price.get("estimated_eval_token_count") or 0
    nanos = round((price.get("estimated_total_price") or 0) * NANOS)
    return [
        ("tokens", f"{train:,} to train" + (f" + {evals:,} to evaluate" if evals else "")),
        ("price", Text(format_nanos(nanos), "bold")),
    ]


def _poll(
    output: Output,
    ask: Callable[[Callable[[str], None]], dict[str, Any] | None],
    *,
    first_label: str,
    limit_s: float,
) -> dict[str, Any]:
    """Ask until there is an answer, with a spinner that says what is waited for."""
    deadline, pause_s = time.monotonic() + limit_s, POLL_FIRST_S
    with output.waiting(first_label) as label:
        while (answer := ask(label)) is None:
            if time.monotonic() > deadline:
                raise Failure(
                    "waited_too_long",
                    f"no answer within {limit_s / 3600:g} hours: {first_label}",
                    exit_code=Exit.SERVER,
                    hint="see whether anything moves with: luthier status",
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, POLL_MAX_S)
    return answer

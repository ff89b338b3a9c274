"""``luthier files``: check, upload and look after data files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from luthier.cli.exits import Exit
from luthier.cli.options import AsJson, BaseUrl, Command, FileId, Yes, make_group
from luthier.cli.output import Column, Output, as_dict
from luthier.cli.text import format_size, format_time

app = make_group("Check, upload and look after data files.")

MAX_SHOWN = 100  # a report lists no more
STATUS_STYLES = {"COMPLETED": "green", "INVALID_FORMAT": "red", "FAILED": "red"}
LocalFile = Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl file.", show_default=False)]
LocalFiles = Annotated[
    list[Path], typer.Argument(metavar="FILE…", help="One or more .jsonl files.", show_default=False)
]
Purpose = Annotated[str, typer.Option("--purpose", metavar="NAME", help="What the file is for.")]


@app.command("check", cls=Command)
def check(
    paths: LocalFiles,
    *,
    max_errors: Annotated[
        int,
        typer.Option("--max-errors", metavar="N", min=1, max=MAX_SHOWN, help="How many errors and warnings to print."),
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Check data files, line by line, without a server.

    Exits with 1 when a file is not valid. A file that passes never fails in a job for its format.

    Examples:
      luthier files check train.jsonl
      luthier files check train.jsonl validation.jsonl
      luthier files check train.jsonl --json | jq '.data[0].errors[].line'
    """
    from luthier.cli import checks

    for path in paths:
        checks.require_file(path)
    output = Output(as_json=as_json)
    reports = [checks.check(output, path) for path in paths]
    is_valid = all(report["valid"] for report in reports)
    if as_json:
        output.write_json({"valid": is_valid, "data": reports})
    else:
        for path, report in zip(paths, reports, strict=True):
            checks.show(output, str(path), report, limit=max_errors)
    if not is_valid:
        raise typer.Exit(Exit.NEGATIVE)


@app.command("upload", cls=Command)
def upload(
    path: LocalFile,
    *,
    purpose: Purpose = "fine-tune",
    no_check: Annotated[bool, typer.Option("--no-check", help="Send the file without checking it here first.")] = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Check a file here, then upload it and print its id.

    The same content again is not sent again: the id of the file that the server has is printed.

    Examples:
      luthier files upload train.jsonl
      FILE=$(luthier files upload train.jsonl --json | jq -r .id)
    """
    from luthier.cli import checks, uploading
    from luthier.cli.connection import connect

    checks.require_file(path)
    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        if not no_check and purpose == "fine-tune":
            checks.require_valid(output, path)
        with output.progress(f"Uploading {path.name}") as advance:
            uploaded = uploading.upload(connection, path, purpose=purpose, on_progress=advance)
    if as_json:
        output.write_json(uploaded.file)
        return
    if not uploaded.is_new:
        output.note("the server has a file with this content already")
    output.line(uploaded.file.get("id", ""))


@app.command("list", cls=Command)
def list_files(*, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """List the files of the project, newest last.

    Examples:
      luthier files list
      luthier files list --json | jq -r '.data[].id'
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get("/v1/files"))
    if as_json:
        output.write_json(answer)
        return
    columns = [Column("ID"), Column("Name", fixed=False), Column("Size", right=True), Column("Lines", right=True),
               Column("Status"), Column("Uploaded")]  # fmt: skip
    rows = [
        (file["id"], file.get("filename", ""), format_size(file.get("bytes") or 0), _count_lines(file),
         output.styled(file.get("processing_status", ""), STATUS_STYLES), format_time(file.get("created_at")))
        for file in answer.get("data", [])
    ]  # fmt: skip
    output.table(columns, rows, empty="no files yet: luthier files upload FILE")


@app.command("get", cls=Command)
def get(file_id: FileId, *, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Show one file, and every error that its check found.

    Examples:
      luthier files get file-0b5e…
    """
    from luthier.cli import checks
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        file = as_dict(connection.get(f"/v1/files/{quote(file_id, safe='')}"))
    if as_json:
        output.write_json(file)
        return
    output.fields(
        [
            ("id", str(file.get("id"))),
            ("name", str(file.get("filename"))),
            ("purpose", str(file.get("purpose"))),
            ("size", format_size(file.get("bytes") or 0)),
            ("uploaded", format_time(file.get("created_at"))),
            ("status", output.styled(file.get("processing_status", ""), STATUS_STYLES)),
        ]
    )
    if report := as_dict(file.get("validation_report")):
        output.line()
        checks.show(output, str(file.get("filename")), {"bytes": file.get("bytes"), **report}, limit=MAX_SHOWN)


@app.command("download", cls=Command)
def download(
    file_id: FileId,
    *,
    destination: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="Where to write it; - for stdout.")
    ] = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Download the content of a file.

    By default under its own name, into this folder. An existing file is never overwritten.

    Examples:
      luthier files download file-0b5e…
      luthier files download file-0b5e… -o - | head -1
    """
    from luthier.cli import fetching
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        if str(destination) == "-":
            fetching.copy_to_stdout(connection, f"/v1/files/{quote(file_id, safe='')}/content")
            return
        file = as_dict(connection.get(f"/v1/files/{quote(file_id, safe='')}"))
        target = fetching.choose_target(destination, str(file.get("filename") or file_id))
        with output.progress(f"Downloading {target.name}") as advance:
            fetching.fetch(connection, f"/v1/files/{file['id']}/content", target, on_progress=advance)
    if as_json:
        output.write_json({"id": file["id"], "path": str(target), "bytes": target.stat().st_size})
    else:
        output.line(str(target))


@app.command("delete", cls=Command)
def delete(file_id: FileId, *, yes: Yes = False, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Delete a file; a file that a live job uses is kept.

    Examples:
      luthier files delete file-0b5e… --yes
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        output.require_consent(f"Delete {file_id}?", yes=yes)
        answer = connection.delete(f"/v1/files/{quote(file_id, safe='')}")
    if as_json:
        output.write_json(answer)
    else:
        output.note(f"deleted {file_id}")


def _count_lines(file: dict[str, object]) -> str:
    count = file.get("LineCount")
    return f"{count:,}" if isinstance(count, int) and count else "-"

"""``luthier models``: the base models that jobs can name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from luthier.cli.exits import Exit, Failure
from luthier.cli.options import AsJson, BaseUrl, Command, Yes, make_group
from luthier.cli.output import Column, Output, as_dict
from luthier.cli.text import format_size

if TYPE_CHECKING:
    from luthier.cli.connection import Connection

app = make_group("List, add and remove base models.")

STATUS_STYLES = {"ready": "green", "failed": "red", "queued": "yellow", "fetching": "yellow"}
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name of the base model, as `models list` shows it.", show_default=False)
]


@app.command("list", cls=Command)
def list_models(*, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """List the base models and whether their weights are here.

    Examples:
      luthier models list
      luthier models list --json | jq -r '.data[] | select(.status=="ready") | .name'
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get("/api/models"))
    if as_json:
        output.write_json(answer)
        return
    rows = [
        (
            model["name"],
            output.styled(model.get("status", ""), STATUS_STYLES),
            _format_parameters(model),
            _format_context(model),
            format_size(model["size_bytes"]) if model.get("size_bytes") else "-",
            model.get("source", ""),
        )
        for model in answer.get("data", [])
    ]
    columns = [
        Column("Name"), Column("Status"), Column("Parameters", right=True), Column("Context", right=True),
        Column("Size", right=True), Column("Source"),
    ]  # fmt: skip
    output.table(columns, rows, empty="no base models")


@app.command("show", cls=Command)
def show(name: ModelName, *, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Show one base model: where its weights came from, and what a job may ask of it.

    Examples:
      luthier models show luthier/tiny
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        model = as_dict(connection.get(f"/api/models/{quote(name)}"))
        model["limits"] = _find_limits(connection, name)
    if as_json:
        output.write_json(model)
    else:
        output.fields(_describe(output, model))


def _find_limits(connection: Connection, name: str) -> dict[str, Any] | None:
    """Return the limits, or None while they are not known: a model that was added is fetched first."""
    try:
        return as_dict(connection.get("/v1/fine-tunes/models/limits", {"model_name": name}))
    except Failure as failure:
        if failure.exit_code is not Exit.REFUSED:
            raise
        return None


@app.command("add", cls=Command)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What jobs will call it.", show_default=False)],
    *,
    hub: Annotated[
        str | None,
        typer.Option("--hub", metavar="ID", help="Repository on the hub. Default: NAME.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Folder on the server, in the Hugging Face layout.")
    ] = None,
    package: Annotated[
        str | None, typer.Option("--package", metavar="NAME==VERSION", help="Python package that holds the weights.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REV", help="Commit or tag on the hub. Default: the newest.")
    ] = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Add a base model, which the server then fetches (admin key).

    Only weights in safetensors are taken, and never code from a model's repository.

    Examples:
      luthier models add Qwen/Qwen3-0.6B
      luthier models add my/llama --folder /srv/models/llama
    """
    from luthier.cli.connection import connect

    source, reference = _choose_source(name, hub=hub, folder=folder, package=package)
    output = Output(as_json=as_json)
    body = {"name": name, "source": source, "reference": reference, "revision": revision}
    with connect(base_url) as connection:
        model = as_dict(connection.post("/api/models", body))
    if as_json:
        output.write_json(model)
        return
    output.line(str(model.get("name")))
    output.note(f"the server fetches it now; see how far it is with: luthier models show {name}")


def _choose_source(name: str, *, hub: str | None, folder: Path | None, package: str | None) -> tuple[str, str]:
    named = {"hub": hub, "folder": str(folder.absolute()) if folder else None, "package": package}
    given = [(source, reference) for source, reference in named.items() if reference]
    if len(given) > 1:
        raise Failure(
            "two_sources",
            "a base model comes from one place: --hub, --folder or --package",
            exit_code=Exit.USAGE,
        )
    return given[0] if given else ("hub", name)


@app.command("remove", cls=Command)
def remove(name: ModelName, *, yes: Yes = False, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Take a base model out of the catalog; the built-in ones stay.

    Examples:
      luthier models remove my/llama
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        output.require_consent(f"Remove {name}?", yes=yes)
        answer = connection.delete(f"/api/models/{quote(name)}")
    if as_json:
        output.write_json(answer if answer is not None else {"name": name, "deleted": True})
    else:
        output.note(f"removed {name}")


def _format_parameters(model: dict[str, Any]) -> str:
    count = model.get("param_count")
    return f"{count / 1e6:,.1f} M" if isinstance(count, int) else "-"


def _format_context(model: dict[str, Any]) -> str:
    length = model.get("context_length")
    return f"{length:,}" if isinstance(length, int) else "-"


def _describe(output: Output, model: dict[str, Any]) -> list[tuple[str, Any]]:
    limits = as_dict(model.get("limits"))
    lora, full = as_dict(limits.get("lora_training")), as_dict(limits.get("full_training"))
    return [
        ("name", str(model.get("name"))),
        ("status", output.styled(model.get("status", ""), STATUS_STYLES)),
        ("error", model.get("error")),
        ("source", f"{model.get('source')}: {model.get('reference')}"),
        ("fetched from", model.get("fetched_from")),
        ("folder", model.get("path")),
        ("revision", model.get("revision")),
        ("size", format_size(model["size_bytes"]) if model.get("size_bytes") else None),
        ("parameters", _format_parameters(model)),
        ("context", _format_context(model)),
        ("sequence length", _format_range(limits, "min_max_seq_length", "max_seq_length_sft")),
        ("learning rate", _format_range(limits, "min_learning_rate", "max_learning_rate")),
        ("epochs", f"1 to {limits['max_num_epochs']}" if limits.get("max_num_epochs") else None),
        ("batch, LoRA", _format_range(lora, "min_batch_size", "max_batch_size")),
        ("batch, full", _format_range(full, "min_batch_size", "max_batch_size")),
        ("LoRA rank", f"{lora.get('default_rank')}, at most {lora.get('max_rank')}" if lora else None),
        ("LoRA modules", ", ".join(lora.get("target_modules") or []) or None),
    ]


def _format_range(limits: dict[str, Any], low: str, high: str) -> str | None:
    return f"{limits[low]:,} to {limits[high]:,}" if limits.get(low) and limits.get(high) else None

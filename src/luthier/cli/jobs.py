"""``luthier ft``: estimate, create, watch, cancel and download fine-tuning jobs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from luthier.cli import parameters
from luthier.cli.options import AsJson, BaseUrl, Command, JobId, Yes, make_group
from luthier.cli.output import Output, as_dict

if TYPE_CHECKING:
    from luthier.cli.connection import Connection

app = make_group("Create, watch and download fine-tuning jobs.")

TrainingFile = Annotated[
    str,
    typer.Argument(
        metavar="TRAINING",
        help="A local .jsonl file, or the id of an uploaded one.",
        show_default=False,
        rich_help_panel=parameters.DATA,
    ),
]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Watch the job at once.")]


class Checkpoint(StrEnum):
    """Which archive of a job."""

    ADAPTER = "adapter"
    MERGED = "merged"
    MODEL = "model"


@app.command("create", cls=Command)
def create(
    training: TrainingFile,
    *,
    model: parameters.Model,
    validation_file: parameters.ValidationFile = None,
    suffix: parameters.Suffix = None,
    n_epochs: parameters.NEpochs = None,
    batch_size: parameters.BatchSize = None,
    gradient_accumulation_steps: parameters.GradientAccumulationSteps = None,
    max_seq_length: parameters.MaxSeqLength = None,
    packing: parameters.Packing = None,
    n_evals: parameters.NEvals = None,
    n_checkpoints: parameters.NCheckpoints = None,
    random_seed: parameters.RandomSeed = None,
    learning_rate: parameters.LearningRate = None,
    lr_scheduler: parameters.LrScheduler = None,
    min_lr_ratio: parameters.MinLrRatio = None,
    num_cycles: parameters.NumCycles = None,
    warmup_ratio: parameters.WarmupRatio = None,
    max_grad_norm: parameters.MaxGradNorm = None,
    weight_decay: parameters.WeightDecay = None,
    training_type: parameters.Type = None,
    lora_r: parameters.LoraR = None,
    lora_alpha: parameters.LoraAlpha = None,
    lora_dropout: parameters.LoraDropout = None,
    lora_trainable_modules: parameters.LoraModules = None,
    train_on_inputs: parameters.OnInputs = None,
    yes: Yes = False,
    watch_it: Watch = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    r"""Start a job: check, upload, price, ask, create.

    A local file is checked here and uploaded, unless the server has its content already. The price is
    exact: it is what the job costs when it runs to its end. On a terminal you are asked before the job
    starts; without one, as in a script, it starts at once.

    Examples:
      luthier ft create train.jsonl --model luthier/tiny --watch
      luthier ft create train.jsonl -m HuggingFaceTB/SmolLM2-135M-Instruct \
          --validation-file val.jsonl --n-evals 3 --n-epochs 3 --learning-rate 2e-4
      JOB=$(luthier ft create file-0b5e… -m luthier/tiny --json | jq -r .id)
    """
    body = parameters.build_body(
        model=model, suffix=suffix, n_epochs=n_epochs, batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps, max_seq_length=max_seq_length, packing=packing,
        n_evals=n_evals, n_checkpoints=n_checkpoints, random_seed=random_seed, learning_rate=learning_rate,
        lr_scheduler=lr_scheduler, min_lr_ratio=min_lr_ratio, num_cycles=num_cycles, warmup_ratio=warmup_ratio,
        max_grad_norm=max_grad_norm, weight_decay=weight_decay, training_type=training_type, lora_r=lora_r,
        lora_alpha=lora_alpha, lora_dropout=lora_dropout, lora_trainable_modules=lora_trainable_modules,
        train_on_inputs=train_on_inputs,
    )  # fmt: skip
    from luthier.cli import creating, watching
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        job = creating.create(output, connection, body, training, validation_file, yes=yes)
        _show_created(output, job, as_stream=watch_it)
        if watch_it:
            raise typer.Exit(watching.watch(output, connection, job["id"]))


def _show_created(output: Output, job: dict[str, Any], *, as_stream: bool) -> None:
    if output.as_json:
        if as_stream:  # the first of many lines
            output.write_json_line({"kind": "job", "data": job})
        else:
            output.write_json(job)
        return
    output.line(job["id"])
    output.note("" if as_stream else f"watch it with: luthier watch {job['id']}")


@app.command("estimate", cls=Command)
def estimate(
    training: TrainingFile,
    *,
    model: parameters.Model,
    validation_file: parameters.ValidationFile = None,
    n_epochs: parameters.NEpochs = None,
    n_evals: parameters.NEvals = None,
    max_seq_length: parameters.MaxSeqLength = None,
    packing: parameters.Packing = None,
    training_type: parameters.Type = None,
    train_on_inputs: parameters.OnInputs = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Tell the exact price of a job, without starting it.

    Takes the options that bear on the price. A local file is checked and uploaded first.

    Examples:
      luthier ft estimate train.jsonl --model luthier/tiny --n-epochs 3
    """
    body = parameters.build_body(
        model=model, n_epochs=n_epochs, n_evals=n_evals, max_seq_length=max_seq_length, packing=packing,
        training_type=training_type, train_on_inputs=train_on_inputs,
    )  # fmt: skip
    from luthier.cli import creating
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        price = creating.make_offer(output, connection, body, training, validation_file).price
    if as_json:
        output.write_json(price)
    else:
        output.fields(creating.describe_price(price))


@app.command("list", cls=Command)
def list_jobs(
    *,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the newest N.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """List the jobs of the project, newest last.

    Examples:
      luthier ft list --limit 10
      luthier ft list --json | jq -r '.data[] | select(.status=="running") | .id'
    """
    from luthier.cli import job_views
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get("/v1/fine-tunes"))
    jobs = answer.get("data") or []
    answer["data"] = jobs[-limit:] if limit else jobs
    if as_json:
        output.write_json(answer)
    else:
        rows = [job_views.make_job_row(job) for job in answer["data"]]
        output.table(job_views.JOB_COLUMNS, rows, empty="no jobs yet: luthier ft create FILE --model MODEL")


@app.command("get", cls=Command)
def get(job_id: JobId, *, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Show one job: its state and why, price, parameters, and what became of its money.

    Examples:
      luthier ft get ft-0b5e…
      luthier ft get ft-0b5e… --json | jq -r .status
    """
    from luthier.cli import billing, job_views
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        job = as_dict(connection.get(_path(job_id)))
        money = {} if as_json else billing.get_job_money(connection, job_id)
    if as_json:
        output.write_json(job)
        return
    from luthier.cli import money_views

    job_views.show_job(output, job)
    output.line()
    money_views.show_job_money(output, money)


@app.command("watch", cls=Command)
def watch(job_id: JobId, *, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Watch a job: state, progress, loss curve, events.

    Until the job ends. Survives lost connections and restarts of the server. ^C ends the watching, never the job. Without a
    terminal it prints one event a line; with --json one object a line for every event, metric and state.
    Exits with 0 when the job completed, with 1 when it failed or was cancelled.

    Examples:
      luthier watch ft-0b5e…
      luthier watch ft-0b5e… --json | jq 'select(.kind=="metric") | .data.loss'
    """
    from luthier.cli import watching
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        raise typer.Exit(watching.watch(output, connection, job_id))


@app.command("events", cls=Command)
def events(job_id: JobId, *, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """List the events of a job, oldest first.

    Examples:
      luthier list-events ft-0b5e…
      luthier ft events ft-0b5e… --json | jq -r '.data[] | select(.level!="info") | .message'
    """
    from luthier.cli import job_views
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get(f"{_path(job_id)}/events"))
    if as_json:
        output.write_json(answer)
    else:
        found: list[dict[str, Any]] = answer.get("data") or []
        type_width = job_views.find_type_width(found)
        for event in found:
            job_views.show_event(output, event, type_width=type_width)


@app.command("checkpoints", cls=Command)
def checkpoints(job_id: JobId, *, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """List what can be downloaded of a job.

    Examples:
      luthier ft checkpoints ft-0b5e…
    """
    from luthier.cli import job_views
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get(f"{_path(job_id)}/checkpoints"))
    if as_json:
        output.write_json(answer)
        return
    rows = [job_views.make_checkpoint_row(job_id, checkpoint) for checkpoint in answer.get("data") or []]
    output.table(job_views.CHECKPOINT_COLUMNS, rows, empty="no checkpoints yet")


@app.command("metrics", cls=Command)
def metrics(
    job_id: JobId,
    *,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Rows to print, the newest.")] = 20,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Show the loss curve of a job and its newest numbers.

    With --json all of them.

    Examples:
      luthier ft metrics ft-0b5e…
      luthier ft metrics ft-0b5e… --json | jq '.metrics[]."train/loss"'
    """
    from luthier.cli import job_views
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        answer = as_dict(connection.get(f"{_path(job_id)}/metrics"))
    if as_json:
        output.write_json(answer)
        return
    found: list[dict[str, Any]] = answer.get("metrics") or []
    if output.out.is_terminal:
        curve = job_views.make_chart(
            job_views.list_losses(found, "train"), job_views.list_losses(found, "eval"), width=output.out.width
        )
        if curve is not None:
            output.render(curve, "")
    output.table(job_views.METRIC_COLUMNS, job_views.make_metric_rows(found[-limit:]), empty="no metrics yet")


@app.command("cancel", cls=Command)
def cancel(job_id: JobId, *, yes: Yes = False, as_json: AsJson = False, base_url: BaseUrl = None) -> None:
    """Cancel a job; only completed steps are charged.

    The step that runs is finished first.

    Examples:
      luthier ft cancel ft-0b5e… --yes
    """
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        output.require_consent(f"Cancel {job_id}?", yes=yes)
        job = as_dict(connection.post(f"{_path(job_id)}/cancel"))
    if as_json:
        output.write_json(job)
    else:
        output.line(f"{job_id} {job.get('status')}")


@app.command("download", cls=Command)
def download(
    job_id: JobId,
    *,
    checkpoint: Annotated[
        Checkpoint | None,
        typer.Option(
            "--checkpoint",
            help="adapter (LoRA alone), merged (base with adapter) or model (the main output). "
            "Default: model; adapter with --step of a LoRA job.",
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", metavar="N", min=1, help="An intermediate checkpoint, by its step.")
    ] = None,
    destination: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to make. Default: the model's name.")
    ] = None,
    no_extract: Annotated[
        bool, typer.Option("--no-extract", help="Keep the .tar.zst archive as it is; -o may name the file.")
    ] = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
) -> None:
    """Download and unpack what a job made.

    A download that was broken off goes on where it ended when the command is run again. Size and sha256
    are verified before anything is unpacked.

    Examples:
      luthier ft download ft-0b5e…
      luthier ft download ft-0b5e… --checkpoint adapter -o my-adapter
      luthier ft download ft-0b5e… --step 40 --no-extract
    """
    from luthier.cli import downloading
    from luthier.cli.connection import connect

    output = Output(as_json=as_json)
    with connect(base_url) as connection:
        choice = checkpoint or _choose_checkpoint(connection, job_id, step)
        archive = downloading.find_archive(connection, job_id, choice=choice.value, step=step)
        result = downloading.download(output, connection, archive, destination, extract=not no_extract)
    if as_json:
        output.write_json({"id": job_id, **result.to_json()})
    else:
        downloading.show(output, result)


def _choose_checkpoint(connection: Connection, job_id: str, step: int | None) -> Checkpoint:
    """Return the main output, or what a LoRA job keeps in mid-training: its adapter."""
    if step is None:
        return Checkpoint.MODEL
    job = as_dict(connection.get(_path(job_id)))
    is_lora = as_dict(job.get("training_type")).get("type") == "Lora"
    return Checkpoint.ADAPTER if is_lora else Checkpoint.MODEL


def _path(job_id: str) -> str:
    return f"/v1/fine-tunes/{quote(job_id, safe='')}"

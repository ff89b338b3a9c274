"""Jobs, events, metrics and checkpoints as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from luthier.cli import chart
from luthier.cli.output import Column, Output, as_dict
from luthier.cli.text import escape, format_clock, format_duration, format_nanos, format_size, format_time, parse_time

STATE_STYLES = {
    "completed": "bold green",
    "error": "bold red",
    "user_error": "bold red",
    "cancelled": "bold yellow",
    "cancel_requested": "yellow",
    "running": "bold cyan",
    "compressing": "cyan",
    "uploading": "cyan",
}
LEVEL_STYLES = {"error": "red", "warning": "yellow"}
CHART_HEIGHT = 12
TYPE_WIDTH = len("validation_data_download_complete")  # the longest of the usual ones
PARAMETERS = (
    "n_epochs", "batch_size", "gradient_accumulation_steps", "max_seq_length", "packing", "train_on_inputs", "n_evals",
    "n_checkpoints", "random_seed", "learning_rate", "warmup_ratio", "max_grad_norm", "weight_decay",
)  # fmt: skip

JOB_COLUMNS = [
    Column("ID"),
    Column("State"),
    Column("Base model"),
    Column("Progress", right=True),
    Column("Price", right=True),
    Column("Created"),
]
CHECKPOINT_COLUMNS = [
    Column("Step", right=True),
    Column("Kind"),
    Column("Size", right=True),
    Column("Created"),
    Column("Get it with", fixed=False),
]
METRIC_COLUMNS = [
    Column("Step", right=True),
    Column("Epoch", right=True),
    Column("Loss", right=True),
    Column("Eval loss", right=True),
    Column("Gradient norm", right=True),
    Column("Learning rate", right=True),
]


def style_state(state: str) -> Text:
    """Return a state in its colour."""
    return Text(escape(state), STATE_STYLES.get(state, ""))


def make_job_row(job: dict[str, Any]) -> tuple[str | Text, ...]:
    """Return a row of JOB_COLUMNS."""
    return (
        str(job.get("id")),
        style_state(str(job.get("status"))),
        str(job.get("model")),
        _describe_steps(job) or "-",
        _describe_price(job) or "-",
        format_time(job.get("created_at")),
    )


def show_job(output: Output, job: dict[str, Any]) -> None:
    """Print one job: how it stands, what it costs, what it was asked to do."""
    output.fields(
        [
            ("id", str(job.get("id"))),
            ("state", style_state(str(job.get("status")))),
            ("why", job.get("why") or None),
            ("progress", _describe_steps(job)),
            ("remaining", _describe_remaining(job)),
            ("price", _describe_price(job)),
            ("tokens", f"{job['token_count']:,}" if job.get("token_count") else None),
            ("created", format_time(job.get("created_at"))),
            ("started", format_time(job["started_at"]) if job.get("started_at") else None),
            ("finished", format_time(job["finished_at"]) if job.get("finished_at") else None),
        ]
    )
    output.line()
    output.fields(
        [
            ("output model", job.get("model_output_name")),
            ("base model", job.get("model")),
            ("training file", job.get("training_file")),
            ("validation file", job.get("validation_file") or None),
            *list_parameters(job),
        ]
    )


def list_parameters(job: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the hyper-parameters of a job as names and values."""
    scheduler = as_dict(job.get("lr_scheduler"))
    kind = scheduler.get("lr_scheduler_type")
    arguments = ", ".join(f"{name} {value}" for name, value in as_dict(scheduler.get("lr_scheduler_args")).items())
    pairs = [
        ("training type", _describe_weights(as_dict(job.get("training_type")))),
        *((_name_parameter(name), job.get(name)) for name in PARAMETERS),
        ("scheduler", f"{kind} ({arguments})" if kind and arguments else kind),
    ]
    return [(name, _format_value(value)) for name, value in pairs if value is not None]


def _name_parameter(name: str) -> str:
    return name.removeprefix("n_").replace("_", " ")


def _describe_weights(weights: dict[str, Any]) -> str | None:
    if weights.get("type") != "Lora":
        return weights.get("type")
    parts = [
        f"{name} {weights[key]}"
        for key, name in (
            ("lora_r", "r"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout"), ("lora_trainable_modules", "on"),
        )
        if weights.get(key) is not None
    ]  # fmt: skip
    return f"LoRA ({', '.join(parts)})"


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _describe_steps(job: dict[str, Any]) -> str | None:
    total = job.get("total_steps")
    return f"{job.get('steps_completed') or 0:,}/{total:,}" if total else None


def _describe_price(job: dict[str, Any]) -> str | None:
    """Return the price; a job that is not priced yet has none, though the wire then says 0."""
    price = job.get("total_price")
    return format_nanos(price) if price or (price == 0 and job.get("finished_at")) else None


def _describe_remaining(job: dict[str, Any]) -> str | None:
    """Say how long the job takes yet: the wire counts from ``started_at``."""
    progress, started = as_dict(job.get("progress")), parse_time(job.get("started_at"))
    if job.get("finished_at") or not progress.get("estimate_available") or started is None:
        return None
    elapsed_s = (datetime.now(UTC) - started).total_seconds()
    return f"about {format_duration(progress['seconds_remaining'] - elapsed_s)}"


def make_event_line(event: dict[str, Any], *, type_width: int) -> Text:
    """Return one event as one line: time, type (unless ``type_width`` is 0), message; its colour tells its level."""
    style = LEVEL_STYLES.get(str(event.get("level")), "")
    line = Text.assemble((format_clock(event.get("created_at")), "dim"), "  ")
    if type_width:
        line.append_text(Text.assemble((escape(event.get("type", "")).ljust(type_width), style or "cyan"), "  "))
    return line.append(escape(event.get("message", "")), style)


def find_type_width(events: Iterable[dict[str, Any]]) -> int:
    """Return the width of the widest type, so that the messages stand in one column."""
    return max((len(escape(event.get("type", ""))) for event in events), default=0)


def show_event(output: Output, event: dict[str, Any], *, type_width: int = TYPE_WIDTH) -> None:
    """Print one event, and its hint when it has one."""
    output.line(make_event_line(event, type_width=type_width))
    if hint := as_dict(event.get("data")).get("hint"):
        output.line(Text.assemble(" " * 10, ("hint: ", "cyan"), escape(hint)))


def make_checkpoint_row(job_id: str, checkpoint: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of CHECKPOINT_COLUMNS."""
    kind = str(checkpoint.get("checkpoint_type"))
    options = f"--checkpoint {_name_choice(checkpoint)}"
    if not kind.startswith("Final"):
        options += f" --step {checkpoint.get('step')}"
    return (
        f"{checkpoint.get('step')}",
        kind,
        format_size(checkpoint["size_bytes"]) if checkpoint.get("size_bytes") else "-",
        format_time(checkpoint.get("created_at")),
        f"luthier ft download {job_id} {options}",
    )


def _name_choice(checkpoint: dict[str, Any]) -> str:
    if checkpoint.get("checkpoint") == "adapter":
        return "adapter"
    return "merged" if "Merged" in str(checkpoint.get("checkpoint_type")) else "model"


def make_metric_rows(metrics: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return rows of METRIC_COLUMNS."""
    names = (("train/epoch", ".2f"), ("train/loss", ".4f"), ("eval/loss", ".4f"), ("train/grad_norm", ".3f"),
             ("train/learning_rate", ".2e"))  # fmt: skip
    return [
        (
            str(metric.get("train/global_step", "-")),
            *(f"{metric[name]:{style}}" if metric.get(name) is not None else "-" for name, style in names),
        )
        for metric in metrics
    ]


def list_losses(metrics: Iterable[dict[str, Any]], kind: str) -> list[chart.Point]:
    """Return (step, loss) of ``train`` or ``eval`` from metrics in the wire's form."""
    return [
        (metric["train/global_step"], metric[f"{kind}/loss"])
        for metric in metrics
        if metric.get(f"{kind}/loss") is not None and metric.get("train/global_step") is not None
    ]


def make_chart(
    train: Sequence[chart.Point], evals: Sequence[chart.Point], *, width: int, height: int = CHART_HEIGHT
) -> RenderableType | None:
    """Return the loss curve with its legend, or None when there is nothing to draw or no room."""
    drawn = chart.draw(train, evals, width=width, height=height - 1)
    if drawn is None:
        return None
    legend = Text.assemble(
        " " * (len(drawn.axis) - len(drawn.axis.lstrip()) + 1), ("━ ", "cyan"), ("train loss", "dim")
    )
    if evals:
        legend.append_text(Text.assemble("   ", (f"{chart.MARK} ", "yellow"), ("evaluation loss", "dim")))
    lines = [legend]
    for label, cells, marked in drawn.rows:
        line = Text.assemble((label, "dim"), (" ┤" if label.strip() else " │", "dim"), (cells, "cyan"))
        for column in marked:
            line.stylize("bold yellow", len(label) + 2 + column, len(label) + 3 + column)
        lines.append(line)
    lines += [Text(drawn.axis, "dim"), Text(drawn.ticks, "dim")]
    return Group(*lines)

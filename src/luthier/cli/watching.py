"""Watching a job: a live picture on a terminal, lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from luthier.cli import chart, job_views
from luthier.cli.connection import Connection
from luthier.cli.exits import Exit
from luthier.cli.following import TERMINAL, Update, follow
from luthier.cli.output import Output, as_dict
from luthier.cli.text import escape, format_duration, format_nanos, parse_time

REFRESH_PER_S = 4
SPEED_STEPS = 10  # tokens a second are averaged over so many steps
EVENTS_KEPT = 20
PROGRESS_EVERY_S = 15.0  # a line of numbers, where no terminal shows the picture
FRAME_ROWS = 7  # of the picture, besides chart and events, the cursor's row among them
EVENTS_MIN, CHART_MIN = 3, 8
NARROW = 70  # columns below which an event's type would leave its message no room


def watch(output: Output, connection: Connection, job_id: str) -> Exit:
    """Show a job until it ends; return the exit code that its final state calls for."""
    try:
        job = as_dict(connection.get(f"/v1/fine-tunes/{quote(job_id, safe='')}"))
        picture = Picture(job_id, model=str(job.get("model")))
        if output.as_json:
            _write_json(output, connection, picture)
        elif output.out.is_terminal and not output.out.is_dumb_terminal:
            _show_live(output, connection, picture)
        else:
            _print_lines(output, connection, picture)
    except KeyboardInterrupt:
        output.note(f"the job goes on; come back with: luthier watch {job_id}", style=None)
        return Exit.INTERRUPTED
    if not output.as_json:
        _show_end(output, picture)
    return Exit.OK if picture.status == "completed" else Exit.NEGATIVE


def _write_json(output: Output, connection: Connection, picture: Picture) -> None:
    for update in follow(connection, picture.job_id):
        picture.take(update)
        output.write_json_line({"kind": update.kind, "data": update.data})


def _print_lines(output: Output, connection: Connection, picture: Picture) -> None:
    def tell_lost(reason: str) -> None:
        output.note(f"connection lost ({reason}); trying again")

    told_at = time.monotonic()
    for update in follow(connection, picture.job_id, on_lost=tell_lost):
        picture.take(update)
        if update.kind == "event":
            job_views.show_event(output, update.data)
        elif update.kind == "state" and picture.train and time.monotonic() - told_at >= PROGRESS_EVERY_S:
            told_at = time.monotonic()
            output.note("   ".join(_list_numbers(picture)))  # on stderr: stdout holds the event log alone


def _show_live(output: Output, connection: Connection, picture: Picture) -> None:
    console = output.out
    with Live(get_renderable=lambda: draw(picture, console), console=console, refresh_per_second=REFRESH_PER_S) as live:
        for update in follow(connection, picture.job_id, on_lost=picture.lose):
            picture.take(update)
        live.refresh()


def _show_end(output: Output, picture: Picture) -> None:
    """Say what to do next, once the last picture or line stands."""
    if output.out.is_terminal:
        output.note("")
    if picture.status == "completed":
        output.note(f"get the model with: luthier ft download {picture.job_id}", style=None)
        return
    hints = [hint for event in picture.events if (hint := as_dict(event.get("data")).get("hint"))]
    if hints and output.out.is_terminal:  # the picture has no room for hints; the lines have them
        output.note(f"hint: {hints[-1]}", style=None)
    if picture.status != "cancelled":
        output.note(f"see the whole log with: luthier list-events {picture.job_id}", style=None)


@dataclass
class Picture:
    """What is known of the job at this moment."""

    job_id: str
    model: str
    state: dict[str, Any] = field(default_factory=dict)
    train: list[chart.Point] = field(default_factory=list)
    evals: list[chart.Point] = field(default_factory=list)
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    speeds: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=SPEED_STEPS))
    state_at: float = 0.0  # monotonic
    lost: str | None = None

    @property
    def status(self) -> str:
        """The state's name."""
        return str(self.state.get("status") or "")

    @property
    def tokens_per_s(self) -> float | None:
        """The speed of the last steps."""
        seconds = sum(step_s for _, step_s in self.speeds)
        return sum(tokens for tokens, _ in self.speeds) / seconds if seconds > 0 else None

    @property
    def seconds_remaining(self) -> float | None:
        """What is left, counted on from when the server said it."""
        remaining = self.state.get("seconds_remaining")
        if remaining is None or self.status in TERMINAL:
            return None
        return max(0.0, float(remaining) - (time.monotonic() - self.state_at))

    def take(self, update: Update) -> None:
        """Add what the stream told."""
        self.lost = None
        if update.kind == "state":
            self.state, self.state_at = update.data, time.monotonic()
        elif update.kind == "event":
            self.events.append(update.data)
        elif update.kind == "metric":
            self._take_metric(update.data)

    def _take_metric(self, metric: dict[str, Any]) -> None:
        is_eval = metric.get("kind") == "eval"
        if not is_eval:
            self.speeds.append((metric.get("tokens") or 0, metric.get("step_s") or 0.0))
        if metric.get("loss") is not None:  # JSON has no NaN: a loss that is none comes as null
            (self.evals if is_eval else self.train).append((metric["step"], metric["loss"]))

    def lose(self, reason: str) -> None:
        """Remember that the connection is lost, and why."""
        self.lost = reason


def draw(picture: Picture, console: Console) -> RenderableType:
    """Return the picture for a console: head, progress, loss curve, events, as much of each as fits."""
    return Group(*_list_parts(picture, console.width, console.height))


def _list_parts(picture: Picture, width: int, height: int) -> Iterator[RenderableType]:
    room = max(0, height - FRAME_ROWS)
    chart_height = min(job_views.CHART_HEIGHT, room - EVENTS_MIN - 1)
    curve = None
    if chart_height >= CHART_MIN:
        curve = job_views.make_chart(picture.train, picture.evals, width=width, height=chart_height)
    yield Text.assemble(
        (picture.job_id, "bold"), "  ", job_views.style_state(picture.status or "connecting"), "  ",
        (escape(picture.model), "dim"), no_wrap=True, overflow="ellipsis",
    )  # fmt: skip
    yield _describe_situation(picture)
    yield ""
    if picture.state.get("total_steps"):
        yield _make_progress(picture, width)
        yield ""
    if curve is not None:
        yield curve
        yield ""
    events = list(picture.events)[-max(EVENTS_MIN, room - (chart_height + 1 if curve else 0)) :]
    type_width = 0 if width < NARROW else job_views.find_type_width(events)
    for event in events:
        line = job_views.make_event_line(event, type_width=type_width)
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line


def _describe_situation(picture: Picture) -> Text:
    if picture.lost:
        return Text(f"connection lost ({escape(picture.lost)}); trying again", "yellow")
    parts = [escape(picture.state["why"])] if picture.state.get("why") else []
    price = picture.state.get("price_nanos")
    if price is not None and picture.status not in TERMINAL:  # the reason of an end tells what was charged
        parts.append(f"price {format_nanos(price)}")
    started, finished = parse_time(picture.state.get("started_at")), parse_time(picture.state.get("finished_at"))
    if started and finished:
        parts.append(f"took {format_duration((finished - started).total_seconds())}")
    is_over = picture.status in TERMINAL  # then nothing moves any more, and the whole reason is wanted
    return Text("  ".join(parts), "dim", no_wrap=not is_over, overflow="fold" if is_over else "ellipsis")


def _list_numbers(picture: Picture) -> list[str]:
    step, total = picture.state.get("step") or 0, picture.state.get("total_steps") or 0
    numbers = [f"step {step:,} of {total:,}"]
    if picture.train:
        numbers.append(f"loss {picture.train[-1][1]:.3f}")
    if picture.tokens_per_s and picture.status == "running":
        numbers.append(f"{picture.tokens_per_s:,.0f} tokens/s")
    if picture.seconds_remaining is not None:
        numbers.append(f"{format_duration(picture.seconds_remaining)} left")
    return numbers


def _make_progress(picture: Picture, width: int) -> RenderableType:
    step, total = picture.state.get("step") or 0, picture.state["total_steps"]
    text = "   ".join(_list_numbers(picture))
    bar = ProgressBar(total=total, completed=step, complete_style="cyan", finished_style="green")
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    if len(text) + 12 > width:  # the bar keeps at least ten columns, or a line of its own
        grid.add_column()
        grid.add_row(bar)
        grid.add_row(Text(text, no_wrap=True, overflow="ellipsis"))
        return grid
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    grid.add_row(bar, text)
    return grid

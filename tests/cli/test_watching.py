"""The picture of a job, drawn for terminals of several sizes; and the lines where there is none."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from luthier.cli import watching
from luthier.cli.following import Update
from luthier.cli.watching import Picture

TIME = "2026-01-01T12:00:00.000000Z"


def make_event(type_, message, *, level="info", **data):
    return Update(
        "event", {"type": type_, "message": message, "level": level, "created_at": TIME, "data": data, "seq": 1}
    )


def make_state(status, **fields):
    return Update("state", {"id": "ft-1", "status": status, "why": f"It is {status}", **fields})


def make_metric(step, loss, kind="train", **fields):
    return Update("metric", {"kind": kind, "step": step, "loss": loss, "tokens": 1000, "step_s": 0.5, **fields})


def make_picture(*updates):
    picture = Picture("ft-0123", model="luthier/tiny")
    for update in updates:
        picture.take(update)
    return picture


RUNNING = [
    make_event("job_pending", "Fine-tuning request created"),
    make_event("warning", "2 rows are cut", level="warning"),
    *(make_metric(step, 3.0 - step / 20) for step in range(1, 31)),
    make_metric(30, 1.7, kind="eval"),
    make_state("running", step=30, total_steps=60, seconds_remaining=90.0, price_nanos=24_396_960),
]


def draw(picture, *, width=80, height=30):
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(watching.draw(picture, console))
    return console.file.getvalue().splitlines()


def test_draw_when_running_then_state_reason_progress_speed_loss_and_events_are_there():
    text = "\n".join(draw(make_picture(*RUNNING)))
    for expected in (
        "ft-0123  running  luthier/tiny", "It is running  price $0.02439696", "step 30 of 60", "loss 1.500",
        "2,000 tokens/s", "1 min 30 s left", "train loss", "◆ evaluation loss", "Fine-tuning request created",
        "2 rows are cut",
    ):  # fmt: skip
        assert expected in text


def test_draw_when_waiting_then_the_reason_without_an_empty_bar_or_chart():
    lines = draw(make_picture(make_event("job_pending", "created"), make_state("queued", total_steps=None)))
    assert "It is queued" in lines[1]
    assert not any("step" in line or "└" in line for line in lines)


def test_draw_when_connection_is_lost_then_it_says_so_until_it_is_back():
    picture = make_picture(*RUNNING)
    picture.lose("the server ended the stream")
    assert "connection lost (the server ended the stream); trying again" in draw(picture)[1]
    picture.take(make_metric(31, 1.4))
    assert "connection lost" not in "\n".join(draw(picture))


@pytest.mark.parametrize(("width", "height"), [(200, 60), (80, 24), (60, 20), (40, 14), (20, 10)])
def test_draw_when_terminal_has_any_size_then_the_picture_fits(width, height):
    lines = draw(
        make_picture(*RUNNING, *(make_event("checkpoint_save", "x" * 300) for _ in range(30))),
        width=width,
        height=height,
    )
    assert max(map(len, lines)) <= width
    assert len(lines) < height


def test_draw_when_messages_hold_terminal_sequences_then_they_are_shown():
    picture = make_picture(make_event("warning", "\x1b[2J\x07gone"), make_state("running", why="\x1b[31mred"))
    text = "\n".join(draw(picture))
    assert "\x1b" not in text
    assert r"\x1b[2J\x07gone" in text


def test_draw_when_job_is_over_then_the_whole_reason_and_the_time():
    picture = make_picture(
        make_state(
            "error", why="word " * 60 + "end", charged_nanos=0, price_nanos=5, seconds_remaining=3.0,
            started_at=TIME, finished_at="2026-01-01T12:01:05.000000Z",
        )
    )  # fmt: skip
    text = " ".join(" ".join(draw(picture)).split())
    assert "word end took 1 min 05 s" in text
    assert "left" not in text


def test_picture_when_loss_is_missing_then_the_metric_is_left_out():
    picture = make_picture(make_metric(1, None), make_metric(2, 1.0))
    assert picture.train == [(2, 1.0)]


STREAM = [
    make_event("job_start", "Job started"),
    make_metric(1, 2.5),
    make_event("job_error", "bad", level="error", hint="do x"),
]


@pytest.fixture
def job_server(serve):
    def start(*, status):
        def answer(request):
            if not request.path.endswith("/stream"):
                request.send_json({"id": "ft-1", "model": "luthier/tiny"})
                return
            events, metrics, body = 0, 0, ""
            for update in [*STREAM, make_state(status)]:
                events, metrics = events + (update.kind == "event"), metrics + (update.kind == "metric")
                body += f"event: {update.kind}\nid: e{events}.m{metrics}\ndata: {json.dumps(update.data)}\n\n"
            request.send(200, body.encode(), Content_Type="text/event-stream")

        return serve(answer)

    return start


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("cancelled", 1), ("error", 1), ("user_error", 1)])
def test_watch_when_no_terminal_then_a_line_an_event_and_the_code_tells_the_end(cli, job_server, status, code):
    with job_server(status=status) as peer:
        result = cli("watch", "ft-1", "--base-url", peer.url, LUTHIER_API_KEY="lk-x")
    assert result.code == code
    assert [line.split() for line in result.out.splitlines()] == [
        ["12:00:00", "job_start", "Job", "started"],
        ["12:00:00", "job_error", "bad"],
        ["hint:", "do", "x"],
    ]
    assert ("luthier ft download ft-1" in result.err) == (status == "completed")


def test_watch_when_json_then_one_object_a_line_for_everything(cli, job_server):
    with job_server(status="completed") as peer:
        result = cli("ft", "watch", "ft-1", "--json", "--base-url", peer.url, LUTHIER_API_KEY="lk-x")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["kind"] for line in lines] == ["event", "metric", "event", "state"]
    assert lines[1]["data"]["loss"] == 2.5
    assert (result.code, result.err) == (0, "")


def test_watch_when_interrupted_then_says_how_to_come_back_and_130(serve, home):
    release = threading.Event()

    def answer(request):
        if not request.path.endswith("/stream"):
            request.send_json({"id": "ft-1", "model": "luthier/tiny"})
            return
        request.send_response(200)
        request.end_headers()
        request.wfile.write(f"event: event\nid: e1.m0\ndata: {json.dumps(STREAM[0].data)}\n\n".encode())
        release.wait(60)

    with serve(answer) as peer:
        process = subprocess.Popen(
            [sys.executable, "-m", "luthier.cli", "watch", "ft-1"],
            env={**os.environ, "LUTHIER_HOME": str(home), "LUTHIER_BASE_URL": peer.url, "LUTHIER_API_KEY": "lk-x"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert "job_start" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        release.set()
    assert process.returncode == 130
    assert err == "the job goes on; come back with: luthier watch ft-1\n"

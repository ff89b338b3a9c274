"""The event stream of a job (server-sent events): its log, its metrics and its state, as they happen.

Messages are ``event``, ``metric`` and ``state``; each id is ``e<last event>.m<last metric>``, so that
``Last-Event-ID`` brings exactly what was missed, also from another server on the same database.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
from collections.abc import AsyncGenerator
from typing import Annotated, cast

import msgspec
from fastapi import APIRouter, Depends, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from starlette.types import Message, Send

from luthier import log as logging
from luthier.api.auth import PrincipalParam
from luthier.api.context import Services, ServicesParam
from luthier.api.platform.feeds import Feeds, Item, Page, Position, parse_position
from luthier.api.platform.jobs import describe_state
from luthier.api.times import format_time
from luthier.jobs import log, states
from luthier.jobs import service as jobs
from luthier.jobs.schemas import EventView, MetricView

EVENTS_A_PAGE = 500
METRICS_A_PAGE = 1_000
SEND_TIMEOUT_S = 30.0  # a client that takes nothing for this long is gone, or will come back

router = APIRouter(prefix="/api/fine-tunes", tags=["fine-tuning"])
_log = logging.get_logger(__name__)
_encode = msgspec.json.Encoder().encode


class EventStream(StreamingResponse):
    """A stream that ends when its client does not take what is sent, and that always closes its generator."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes], *, send_timeout_s: float = SEND_TIMEOUT_S) -> None:
        headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
        super().__init__(chunks, headers=headers)
        self._chunks = chunks
        self._send_timeout_s = send_timeout_s

    async def stream_response(self, send: Send) -> None:
        """Send the stream, each chunk under a time limit."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._send_timeout_s):
                await send(message)

        async with contextlib.aclosing(self._chunks):
            try:
                await super().stream_response(send_in_time)
            except TimeoutError:
                _log.info("a client takes nothing; its stream ends", timeout_s=self._send_timeout_s)


async def get_feeds(request: Request) -> Feeds:
    """Return the process's feeds."""
    return cast("Feeds", request.app.state.feeds)


FeedsParam = Annotated[Feeds, Depends(get_feeds)]


@router.get("/{job_id}/stream", status_code=200, response_class=EventStream)
async def stream_job(
    principal: PrincipalParam,
    services: ServicesParam,
    feeds: FeedsParam,
    job_id: str,
    last_event_id: Annotated[str | None, Header(description="Id of the last message received")] = None,
) -> EventStream:
    """Follow a job: everything from the first event (or from ``Last-Event-ID``) on, until its state is terminal."""
    position = parse_position(last_event_id) if last_event_id else Position()
    await run_in_threadpool(_require_job, services, principal.project_id, job_id)
    feeds.require_room()
    read = functools.partial(_read_page, services, principal.project_id, job_id)
    return EventStream(feeds.stream(job_id, read, position))


def _require_job(services: Services, project_id: str, job_id: str) -> None:
    with services.database.read() as tx:
        jobs.get_job(tx, project_id, job_id)


def _read_page(services: Services, project_id: str, job_id: str, position: Position) -> Page:
    """Read what comes after a position, all of one moment. Raises NotFound once the job is deleted."""
    with services.database.read() as tx:
        job = jobs.get_job(tx, project_id, job_id, now=services.clock.now())
        events = log.list_events(tx, job_id, after=position.event, limit=EVENTS_A_PAGE)
        metrics = log.list_metrics(tx, job_id, after=position.metric, limit=METRICS_A_PAGE)
    items = heapq.merge(
        ((event.created_at, Item("event", event.seq, _encode_event(event))) for event in events),
        ((metric.logged_at, Item("metric", metric.seq, _encode_metric(metric))) for metric in metrics),
        key=lambda pair: pair[0],
    )
    return Page(
        items=[item for _, item in items],
        has_more=len(events) == EVENTS_A_PAGE or len(metrics) == METRICS_A_PAGE,
        state=describe_state(job).model_dump_json().encode(),
        is_terminal=job.state in states.TERMINAL,
    )


def _encode_event(event: EventView) -> bytes:
    return _encode({
        "seq": event.seq,
        "created_at": format_time(event.created_at),
        "type": event.type,
        "level": event.level,
        "message": event.message,
        "step": event.step,
        "data": event.data,
    })  # fmt: skip


def _encode_metric(metric: MetricView) -> bytes:
    return _encode({
        "seq": metric.seq,
        "logged_at": format_time(metric.logged_at),
        "kind": metric.kind,
        "step": metric.step,
        "epoch": metric.epoch,
        "loss": metric.loss,
        "grad_norm": metric.grad_norm,
        "learning_rate": metric.learning_rate,
        "tokens": metric.tokens,
        "step_s": metric.step_s,
    })  # fmt: skip

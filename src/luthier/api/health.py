"""What machines ask: is it alive, can it serve, what does it count. Open to all; nothing here is secret."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from luthier.api.context import Services, ServicesParam
from luthier.api.metrics import Metrics
from luthier.billing import audit
from luthier.errors import ServiceError
from luthier.jobs import service as jobs
from luthier.jobs import states

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def get_health() -> dict[str, str]:
    """Say that the process answers. Async: it must answer even when every thread is taken."""
    return {"status": "ok"}


@router.get("/readyz")
def get_readiness(services: ServicesParam) -> JSONResponse:
    """Say whether requests can be served: 503 names the part that fails."""
    checks = {"database": _check_database(services), "storage": _check_storage(services)}
    ready = all(problem is None for problem in checks.values())
    return JSONResponse(
        {
            "status": "ready" if ready else "not ready",
            "checks": {name: problem or "ok" for name, problem in checks.items()},
        },
        status_code=200 if ready else 503,
    )


def _check_database(services: Services) -> str | None:
    try:
        with services.database.read() as tx:
            tx.execute(sa.text("SELECT 1"))
    except SQLAlchemyError as error:
        return type(error).__name__  # its text may hold the database's URL
    return None


def _check_storage(services: Services) -> str | None:
    try:
        services.store.require_writable()
    except ServiceError as error:
        return error.code
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


@router.get("/metrics", response_class=Response)
def get_metrics(request: Request, services: ServicesParam) -> Response:
    """Return the counters in Prometheus' text format."""
    metrics: Metrics = request.app.state.metrics
    with contextlib.suppress(SQLAlchemyError):  # without its database the process still has its own counters to tell
        with services.database.read() as tx:
            counts = jobs.count_by_state(tx)
            last_audit = audit.find_last(tx)
        metrics.set_jobs({state: counts.get(state, 0) for state in states.LIVE})
        if last_audit is not None:
            metrics.set_ledger(problems=len(last_audit.problems), verified_at=last_audit.audited_at.timestamp())
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

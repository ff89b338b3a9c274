"""Whether anything moves: the supervisors that are alive, their slots, and how many jobs there are for them."""

from __future__ import annotations

from importlib import metadata

from fastapi import APIRouter
from pydantic import BaseModel

from luthier.api.auth import PrincipalParam
from luthier.api.context import ServicesParam
from luthier.api.times import Time
from luthier.jobs import service as jobs
from luthier.jobs import states, supervisors

router = APIRouter(tags=["status"])


class SupervisorAnswer(BaseModel):
    """A supervisor that was heard of lately."""

    id: str
    host: str
    pid: int
    slots: int
    started_at: Time
    seen_at: Time


class Status(BaseModel):
    """The state of the whole service. ``queued`` jobs wait for a slot, ``pending`` ones for their data or model."""

    version: str
    supervisors: list[SupervisorAnswer]
    slots: int
    running: int
    queued: int
    pending: int


@router.get("/api/status")
def get_status(principal: PrincipalParam, services: ServicesParam) -> Status:
    """Tell which supervisors are alive and what they have to do."""
    del principal
    with services.database.read() as tx:
        alive = supervisors.list_alive(tx, now=services.clock.now())
        counts = jobs.count_by_state(tx)
    return Status(
        version=metadata.version("luthier"),
        supervisors=[
            SupervisorAnswer(
                id=one.id, host=one.host, pid=one.pid, slots=one.slots, started_at=one.started_at, seen_at=one.seen_at
            )
            for one in alive
        ],
        slots=sum(one.slots for one in alive),
        running=sum(counts.get(state, 0) for state in states.LEASED),
        queued=counts.get("queued", 0),
        pending=counts.get("pending", 0),
    )

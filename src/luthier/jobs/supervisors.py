"""Which supervisors are alive, so that the API can say why nothing moves."""

from __future__ import annotations

from datetime import datetime, timedelta

from luthier.db import Session
from luthier.jobs import queries
from luthier.jobs.schemas import SupervisorView
from luthier.jobs.tables import Supervisor

ALIVE_S = 15.0  # a supervisor says so every tick, or every few seconds; silence for longer means that it is gone


def heartbeat(tx: Session, *, id: str, host: str, pid: int, slots: int, now: datetime) -> None:
    """Note that a supervisor is alive."""
    row = queries.find_supervisor(tx, id)
    if row is None:
        row = Supervisor(id=id, started_at=now)
        tx.add(row)
    elif row.pid != pid or row.host != host:
        row.started_at = now
    row.host = host
    row.pid = pid
    row.slots = slots
    row.seen_at = now


def list_alive(tx: Session, *, now: datetime) -> list[SupervisorView]:
    """Return the supervisors that were heard of lately, the oldest first."""
    return [
        SupervisorView(
            id=row.id, host=row.host, pid=row.pid, slots=row.slots, started_at=row.started_at, seen_at=row.seen_at
        )
        for row in queries.list_supervisors(tx, seen_since=now - timedelta(seconds=ALIVE_S))
    ]

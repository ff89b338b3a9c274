"""Creates that are safe to repeat: a caller whose answer was lost gets its first job back, not a second.

* With an ``Idempotency-Key``: for ``KEY_TTL_S`` every create with the key returns the first job; another
  body under the same key is refused.
* Without one: the same body, sent with the same API key within ``BODY_TTL_S``, returns the first job if the
  caller can have missed the answer. That is so until ``confirm_delivered`` says that the answer left in
  full, and also when the client itself says that this is a retry (a proxy may have lost what left here).
  A create that follows a delivered answer is a second job, as its caller means it; so is one after the
  first job was cancelled or deleted, for then its caller knows of the first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.exc import IntegrityError

from luthier.db import Session
from luthier.errors import InvalidRequest, Unprocessable
from luthier.jobs import queries
from luthier.jobs.request import JobRequest
from luthier.jobs.tables import Idempotency, Job

KEY_TTL_S: Final = 24 * 3600
BODY_TTL_S: Final = 60
MAX_KEY_LENGTH: Final = 255


def hash_request(request: JobRequest) -> str:
    """Return a digest of everything that the caller sent."""
    text = json.dumps(asdict(request), sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def claim(
    tx: Session,
    *,
    api_key_id: str,
    idempotency_key: str | None,
    request_hash: str,
    is_retry: bool,
    job_id: str,
    now: datetime,
) -> Job | None:
    """Return the job that this create made before; or None, and from now on ``job_id`` is what it made.

    Of two at the same time, the second waits here until the first has its job. Raises Unprocessable when
    the caller's key was used for another body.
    """
    queries.delete_idempotency_before(tx, now - timedelta(seconds=KEY_TTL_S))
    name = f"body:{request_hash}" if idempotency_key is None else f"key:{idempotency_key}"
    row = Idempotency(api_key_id=api_key_id, key=name, request_hash=request_hash, job_id=job_id, created_at=now)
    try:
        with tx.begin_nested():
            tx.add(row)
    except IntegrityError:
        row = queries.lock_idempotency(tx, api_key_id, name)
    else:
        return None
    if idempotency_key is not None and row.request_hash != request_hash:
        raise Unprocessable(
            "idempotency_key_reused",
            f"the Idempotency-Key was used for another request: {idempotency_key}",
            hint="send a new key with a new request",
        )
    first = queries.lock_job(tx, row.job_id)
    if first is not None and _is_repeat(row, first, is_retry=is_retry, now=now):
        return first
    row.job_id, row.created_at, row.delivered_at = job_id, now, None
    return None


def _is_repeat(row: Idempotency, first: Job, *, is_retry: bool, now: datetime) -> bool:
    if first.deleted_at is not None:
        return False
    if row.key.startswith("key:"):
        return True
    age_s = (now - row.created_at).total_seconds()
    may_be_lost = row.delivered_at is None or is_retry
    return age_s < BODY_TTL_S and may_be_lost and first.state != "cancelled"


def confirm_delivered(tx: Session, job_id: str, *, now: datetime) -> None:
    """Note that the answer to a create has left in full, so that the same create again is meant as a second job."""
    queries.mark_delivered(tx, job_id, now=now)


def require_valid_key(idempotency_key: str | None) -> None:
    """Raise InvalidRequest for a key that is empty or too long."""
    if idempotency_key is not None and not 0 < len(idempotency_key) <= MAX_KEY_LENGTH:
        raise InvalidRequest(
            "invalid_idempotency_key",
            f"an Idempotency-Key has 1 to {MAX_KEY_LENGTH} characters, this one {len(idempotency_key)}",
            hint="send a UUID, or leave the header out",
        )

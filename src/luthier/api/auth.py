"""Who may call: the bearer key of a request becomes a ``Principal``.

No key is a 401; a key that does not work is a 403 that says why, because the official clients
replace the message of a 401 by one of their own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import SQLAlchemyError

from luthier.accounts import service as accounts
from luthier.accounts.service import Principal
from luthier.api.context import Services, ServicesParam
from luthier.db import outages
from luthier.errors import Forbidden, Unauthenticated
from luthier.log import get_logger

_log = get_logger("luthier.api")
_bearer = HTTPBearer(auto_error=False, scheme_name="API key", description="An API key of a project: lk-…")


def require_principal(
    request: Request,
    services: ServicesParam,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Principal:
    """Return who sends this request. Raises Unauthenticated without a key, Forbidden with one that does not work."""
    secret = credentials.credentials.strip() if credentials else ""
    if not secret:
        raise Unauthenticated(
            "missing_api_key",
            "no API key was sent",
            hint="send the header Authorization: Bearer KEY; clients take it from TOGETHER_API_KEY or LUTHIER_API_KEY",
        )
    now = services.clock.now()
    with services.database.read() as tx:
        principal = accounts.authenticate(tx, secret, master_key=services.master_key, now=now)
    if accounts.is_touch_due(principal, now):
        _touch_key(services, principal.api_key_id, now)
    request.state.project_id = principal.project_id  # the access log names it
    return principal


def _touch_key(services: Services, key_id: str, now: datetime) -> None:
    """Write down that a key is in use, if that can be done: a full disk must not end what only reads."""
    try:
        with services.database.transaction() as tx:
            accounts.touch_key(tx, key_id, now=now)
    except SQLAlchemyError as error:
        _log.warning("key_use_not_noted", outage=outages.find_outage(error), error=type(error).__name__)


PrincipalParam = Annotated[Principal, Depends(require_principal)]


def require_admin(principal: PrincipalParam) -> Principal:
    """Return who sends this request. Raises Forbidden unless the key is an admin key."""
    if not principal.is_admin:
        raise Forbidden(
            "admin_only",
            f"only an admin key may do this; this one is not: {principal.api_key_name}",
            hint="use an admin key of the project, or ask who has one",
        )
    return principal


AdminParam = Annotated[Principal, Depends(require_admin)]

"""What every handler needs: the process's services and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from luthier.billing.payments.processor import Processor
from luthier.billing.policy import Policy
from luthier.clock import Clock
from luthier.db import Database
from luthier.settings import Settings
from luthier.storage import ObjectStore


@dataclass(frozen=True)
class Services:
    """Made once by ``build_app`` and kept in ``app.state.services``."""

    settings: Settings
    database: Database
    store: ObjectStore
    clock: Clock
    master_key: bytes
    policy: Policy
    processor: Processor


async def get_services(request: Request) -> Services:
    """Return the process's services. Async only so that it does not cost a hop to a thread."""
    return cast("Services", request.app.state.services)


ServicesParam = Annotated[Services, Depends(get_services)]

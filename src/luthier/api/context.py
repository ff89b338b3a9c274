"""What every handler needs: the process's services and who is asking."""

from __future__ import annotations

from dataclasses import dataclass

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

"""What a supervisor works with, made once and handed to its parts."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

from luthier.billing.policy import Policy
from luthier.clock import Clock
from luthier.db import Database
from luthier.settings import Settings
from luthier.storage import ObjectStore
from luthier.supervisor.launchers import Launcher


@dataclass(frozen=True)
class Site:
    """One supervisor's surroundings. ``background`` runs what takes long (hashing, copying), so that ticks stay short."""

    settings: Settings
    database: Database
    store: ObjectStore
    clock: Clock
    launcher: Launcher
    background: Executor
    give_up_s: float  # a full disk or a broken store has this long to recover before a job fails
    policy: Policy

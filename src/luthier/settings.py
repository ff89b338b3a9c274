"""Every setting of the service, read from ``LUTHIER_*`` in the environment. Documented in docs/reference/settings.md."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from luthier import machine

GIB = 1024**3
MIB = 1024**2


def _default_slots() -> int:
    # Training scales well to four cores; two processes that share fewer slow each other by more than half.
    return max(1, machine.count_cpus() // 4)


class Settings(BaseSettings):
    """Settings of api, supervisor and console alike."""

    model_config = SettingsConfigDict(env_prefix="LUTHIER_", extra="ignore", frozen=True)

    home: Path = Field(
        default_factory=lambda: Path("~/.luthier").expanduser(),
        description="Directory of everything: database, objects, runs, models, keys",
    )
    host: str = Field(default="127.0.0.1", description="Address that the server listens on")
    port: int = Field(default=4400, ge=0, le=65535, description="Port that the server listens on; 0 picks a free one")
    public_url: str | None = Field(
        default=None, description="Base URL under which clients reach the server; default: from the request"
    )
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL; default: SQLite at HOME/luthier.db (postgresql+psycopg://… also works)",
    )
    storage_url: str | None = Field(
        default=None, description="Where bytes are kept, as file:///path; default: HOME/objects"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged")
    log_json: bool = Field(default=False, description="Log lines as JSON")

    upload_max_bytes: int = Field(default=25 * GIB, ge=1, description="Largest file that may be uploaded")
    upload_url_ttl_s: int = Field(default=3600, ge=1, description="How long a signed upload URL is good for")
    request_body_max_bytes: int = Field(default=8 * MIB, ge=1024, description="Largest JSON or form body")
    upload_idle_timeout_s: float = Field(
        default=60.0, gt=0, description="An upload that sends nothing for this long is ended"
    )

    check_timeout_s: float = Field(default=1800.0, gt=0, description="Time limit of one file's validation")
    check_memory_bytes: int = Field(default=2 * GIB, ge=256 * MIB, description="Memory limit of one file's validation")
    tokenise_timeout_s: float = Field(default=3600.0, gt=0, description="Time limit of tokenising one file")
    tokenise_memory_bytes: int = Field(default=8 * GIB, ge=512 * MIB, description="Memory limit of tokenising one file")
    estimate_wait_s: float = Field(
        default=45.0,  # the official client gives up on any answer after 60 s
        ge=0,
        description="How long estimate-price waits for a file to be tokenised before it answers 503",
    )

    billing_enabled: bool = Field(
        default=True, description="Hold what a job costs before it starts; false: meter everything and refuse nothing"
    )
    billing_minimum: str = Field(
        default="5", description="Available balance, in dollars, that uploads and jobs need to begin with"
    )
    billing_opening_grant: str = Field(
        default="100",
        description="Credit, in dollars, that the first organization gets at the first start, where payments are manual",
    )
    prices_file: Path | None = Field(
        default=None, description="TOML file of prices; default: the rates published for hosted fine-tuning in 2025"
    )
    payments_processor: Literal["manual", "stripe"] = Field(
        default="manual", description="Who takes payments; manual: an operator grants credit"
    )
    stripe_secret_key: SecretStr | None = Field(default=None, description="Stripe's secret key, sk_…")
    stripe_webhook_secret: SecretStr | None = Field(
        default=None,
        description="Secret, whsec_…, with which Stripe signs what it sends to /api/billing/webhooks/stripe",
    )
    stripe_api_base: str | None = Field(
        default=None, description="Another server that speaks as Stripe's API does, for tests; default: Stripe's own"
    )
    limit_grace_s: float = Field(
        default=600.0,
        ge=0,
        description="Time from the warning that a lowered limit or balance no longer covers a job to the job's end",
    )

    slots: int = Field(default_factory=_default_slots, ge=1, le=64, description="Jobs that run at the same time here")
    tick_s: float = Field(default=0.2, gt=0, description="Pause between two rounds of the supervisor")
    lease_s: float = Field(
        default=30.0, gt=1, description="A job's lease; a worker that was not renewed for this long ends itself"
    )
    stall_timeout_s: float = Field(
        default=1800.0, gt=0, description="A worker whose journal says nothing for this long is stalled and is ended"
    )
    cancel_grace_s: float = Field(
        default=60.0, ge=0, description="Time that a cancelled worker has to end before it is killed"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="Device that jobs train on")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Arithmetic of the forward and backward pass; auto: bf16 where the device has it natively",
    )
    worker_threads: int | None = Field(default=None, ge=1, description="CPU threads a worker; default: cores / slots")
    worker_python: Path | None = Field(
        default=None, description="Python that has luthier[train]; default: the one that runs the supervisor"
    )
    disk_reserve_bytes: int = Field(
        default=1 * GIB, ge=0, description="Free space under HOME below which uploads and new jobs are refused"
    )

    @property
    def database_path(self) -> Path:
        """The SQLite file, when no other database is named."""
        return self.home / "luthier.db"

    @property
    def resolved_database_url(self) -> str:
        """The database's URL: the one set, or SQLite under home."""
        return self.database_url or f"sqlite:///{self.database_path}"

    @property
    def objects_dir(self) -> Path:
        """Where the disk store keeps objects."""
        return self.home / "objects"

    @property
    def runs_dir(self) -> Path:
        """Where run directories are made."""
        return self.home / "runs"

    @property
    def models_dir(self) -> Path:
        """Where base models are kept."""
        return self.home / "models"

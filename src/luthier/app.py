"""The map of the HTTP surface: every router, layer and handler in one list."""

from __future__ import annotations

from importlib import metadata

from fastapi import FastAPI

from luthier import home
from luthier.api import errors, health
from luthier.api.context import Services
from luthier.api.edge import Edge
from luthier.api.limits import BodyLimits
from luthier.api.lingering import Lingering
from luthier.api.metrics import Metrics
from luthier.api.platform import billing, job_money, jobs, keys, models, payments, status, stream, webhooks
from luthier.api.platform.feeds import Feeds
from luthier.api.together import account, downloads, files, fine_tunes, uploads, usage
from luthier.api.together import models as together_models
from luthier.billing.payments.opening import build_processor
from luthier.billing.policy import make_policy
from luthier.clock import Clock, SystemClock
from luthier.db import Database
from luthier.files.service import FileExists
from luthier.settings import Settings
from luthier.storage import ObjectStore, open_store

ROUTERS = (
    health.router,
    uploads.router,  # before the files, whose /{file_id} would take upload for an id
    files.router,
    together_models.router,
    fine_tunes.router,
    downloads.router,
    account.router,
    stream.router,
    jobs.router,
    models.router,
    keys.router,
    status.router,
    billing.router,
    job_money.router,
    payments.router,
    usage.router,
    webhooks.router,
)


def build_app(
    settings: Settings,
    *,
    database: Database | None = None,
    store: ObjectStore | None = None,
    clock: Clock | None = None,
) -> FastAPI:
    """Return the application. The database's schema must be up to date; what is missing under home is made."""
    app = FastAPI(
        title="Luthier",
        version=metadata.version("luthier"),
        summary="Fine-tuning as a service that anyone can run",
        description="`/v1` and `/v3` speak the dialect of the Together clients; `/api` is Luthier's own.",
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    policy = make_policy(settings)
    app.state.services = Services(
        settings=settings,
        database=database or Database(settings.resolved_database_url),
        store=store or open_store(settings),
        clock=clock or SystemClock(),
        master_key=home.prepare(settings),
        policy=policy,
        processor=build_processor(settings, currency=policy.currency),
    )
    app.state.feeds = Feeds()
    app.state.metrics = Metrics()
    app.add_middleware(BodyLimits, max_bytes=settings.request_body_max_bytes)
    app.add_middleware(Lingering)
    app.add_middleware(Edge, metrics=app.state.metrics)  # added last: outermost
    errors.install(app)
    app.add_exception_handler(FileExists, files.handle_file_exists)
    for router in ROUTERS:
        app.include_router(router)
    return app

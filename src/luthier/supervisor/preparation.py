"""Before the worker starts: base model, data and spec in its run directory, told by the events of the download."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from luthier import faults
from luthier.billing import quotes
from luthier.catalog import service as catalog
from luthier.catalog.service import ModelView
from luthier.db import Session
from luthier.errors import NotFound
from luthier.files import service as files
from luthier.jobs import log, queue
from luthier.jobs.moves import format_time
from luthier.jobs.schemas import Claim
from luthier.protocol import layout, spec
from luthier.protocol.spec import TrainingSpec
from luthier.storage import ObjectMissing
from luthier.supervisor import run_directory
from luthier.supervisor.launchers.subprocess import get_threads
from luthier.supervisor.run_directory import NotEnoughSpace, RunDirectory
from luthier.supervisor.site import Site


class CannotPrepare(Exception):
    """The job cannot be started here and waiting would not help; the message says why, ``hint`` what would."""

    def __init__(self, kind: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.hint = hint


@dataclass(frozen=True)
class Needs:
    """Everything that a run is made of, as the database has it."""

    base_model: spec.BaseModel
    model_size_bytes: int
    data: Mapping[str, str]  # name in the run directory → key in the store
    recipe: spec.Recipe


def prepare(site: Site, claim: Claim, directory: RunDirectory) -> None:
    """Fill the run directory; an interrupted try is repeated as a whole, and each event is written once.

    Raises CannotPrepare, LeaseLost, and what the store raises.
    """
    with site.database.read() as tx:
        needs = _load(tx, claim)
    teller = _Teller(site, claim)
    with teller.telling("model", "Model data"):
        _require_model(needs.base_model)
    _require_space(site, claim, needs)
    directory.create()
    for name, object_key in needs.data.items():
        kind, words = _DATA_WORDS[name]
        with teller.telling(kind, words):
            _fetch(site, directory, name, object_key)
            faults.hit("prepare.after_fetch")
    directory.write_spec(_make_spec(site, claim, needs))
    faults.hit("prepare.done")


_DATA_WORDS = {
    layout.TRAIN_TOKENS: ("training_data", "Data"),
    layout.VALIDATION_TOKENS: ("validation_data", "Validation data"),
}


@dataclass(frozen=True)
class _Teller:
    """Writes the two events of a download around it; one that is in the log already is not written again."""

    site: Site
    claim: Claim

    @contextmanager
    def telling(self, kind: str, words: str) -> Iterator[None]:
        model = self.claim.base_model
        self._tell(f"{kind}_downloading", lambda now: f"{words} downloading for {model} at {format_time(now)}")
        yield
        self._tell(f"{kind}_download_complete", lambda now: f"{words} downloaded for {model} at {format_time(now)}")

    def _tell(self, event_type: str, make_message: Callable[[datetime], str]) -> None:
        job_id, now = self.claim.job_id, self.site.clock.now()
        with self.site.database.transaction() as tx:
            queue.require_lease(tx, job_id, self.claim.token)
            if all(event.type != event_type for event in log.list_events(tx, job_id)):
                log.append(tx, job_id, event_type, make_message(now), now=now)


def _load(tx: Session, claim: Claim) -> Needs:
    try:
        model = catalog.get_model(tx, claim.base_model)
        training_file = files.get_file(tx, claim.project_id, claim.training_file_id)
        validation_id = claim.validation_file_id
        validation_file = files.get_file(tx, claim.project_id, validation_id) if validation_id else None
    except NotFound as error:
        raise CannotPrepare("platform", error.message, "create the job again with what there is") from error
    if model.path is None or model.revision is None:
        raise _model_is_gone(claim.base_model)
    tokenizations = {
        layout.TRAIN_TOKENS: claim.train_tokenization,
        layout.VALIDATION_TOKENS: claim.validation_tokenization,
    }
    counted = {name: quotes.get(tx, key) for name, key in tokenizations.items() if key is not None}
    _require_same_model(claim, model, {view.tokenizer_digest for view in counted.values()})
    return Needs(
        base_model=_describe_model(model, revision=model.revision, path=model.path),
        model_size_bytes=model.size_bytes or 0,
        data={name: view.object_key for name, view in counted.items() if view.object_key is not None},
        recipe=spec.Recipe(
            output_name=claim.output_name,
            training_file=training_file.filename,
            training_file_sha256=training_file.sha256,
            validation_file=validation_file.filename if validation_file else None,
            validation_file_sha256=validation_file.sha256 if validation_file else None,
            created_at=format_time(claim.created_at),
        ),
    )


def _describe_model(model: ModelView, *, revision: str, path: str) -> spec.BaseModel:
    """Return what the worker is told. A folder of the server is not named: model cards are often published."""
    return spec.BaseModel(
        name=model.name,
        revision=revision,
        path=path,
        fetched_from="a folder on the server" if model.source == "folder" else model.fetched_from or "",
        repository=model.reference if model.source == "hub" else None,
    )


def _require_same_model(claim: Claim, model: ModelView, tokenizer_digests: Collection[str | None]) -> None:
    """Raise CannotPrepare unless weights and tokenizer are those that the job was priced with."""
    compared = [("weights", {claim.base_model_revision}, model.revision)]
    compared.append(("tokenizer", set(tokenizer_digests), model.tokenizer_digest))
    for part, priced, here in compared:
        if priced != {here}:
            before = " and ".join(sorted(str(digest)[:12] for digest in priced))
            raise CannotPrepare(
                "base_model",
                f"the {part} of the base model changed since the job was priced: {model.name} "
                f"had {before} and has {str(here)[:12]}",
                "create the job again, to have it priced with the model of today",
            )


def _require_model(model: spec.BaseModel) -> None:
    if not Path(model.path).is_dir():
        raise _model_is_gone(model.name)


def _model_is_gone(name: str) -> CannotPrepare:
    return CannotPrepare(
        "base_model",
        f"the weights of the base model are not on this server any more: {name}",
        "restart the server, which notices it and has them fetched again; then create the job again",
    )


def _require_space(site: Site, claim: Claim, needs: Needs) -> None:
    settings = site.settings
    data_size_bytes = sum(site.store.get_size(key) for key in needs.data.values())
    needed = run_directory.estimate_bytes(claim.hyperparameters, needs.model_size_bytes, data_size_bytes)
    try:
        run_directory.require_space(settings.runs_dir, needed, settings.disk_reserve_bytes)
    except NotEnoughSpace as error:
        raise CannotPrepare("disk", str(error), "free disk space on the server, then create the job again") from error


def _fetch(site: Site, directory: RunDirectory, name: str, object_key: str) -> None:
    try:
        directory.fetch(site.store, object_key, name)
    except ObjectMissing as error:
        message = f"the tokenised data is gone from the store: {object_key}"
        raise CannotPrepare("platform", message, "upload the file again and create the job again") from error


def _make_spec(site: Site, claim: Claim, needs: Needs) -> TrainingSpec:
    settings = site.settings
    return TrainingSpec(
        version=spec.VERSION,
        job_id=claim.job_id,
        base_model=needs.base_model,
        hyperparameters=claim.hyperparameters,
        device=spec.Device(kind=settings.device, precision=settings.precision, threads=get_threads(settings)),
        recipe=needs.recipe,
        lease_s=settings.lease_s,
    )

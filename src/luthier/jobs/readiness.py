"""Whether a job can be priced: files checked, model here, tokens counted. What is missing is asked for.

The steps are in the order in which they need each other; the first that is not done decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from luthier.billing import pricing, quotes
from luthier.billing.prices import NoPublishedRate, PriceList, TrainingType
from luthier.billing.pricing import Quote, TokenCounts
from luthier.billing.quotes import TokenizationView
from luthier.catalog import service as catalog
from luthier.catalog.service import ModelView
from luthier.db import Session
from luthier.errors import NotFound
from luthier.files import service as files
from luthier.files.service import FileView
from luthier.jobs.schemas import UnavailableReason
from luthier.protocol.spec import Full, Hyperparameters

Role = Literal["training", "validation"]
_NOT_CHECKED: Mapping[Role, UnavailableReason] = {
    "training": "train_file_not_validated",
    "validation": "eval_file_not_validated",
}
_INVALID: Mapping[Role, UnavailableReason] = {"training": "train_file_invalid", "validation": "eval_file_invalid"}
_SHOWN_LINES = 10  # of the lines that a warning names in its text; its data holds more


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be priced. The validation file is None unless evaluations are asked for.

    ``retry_model`` and ``retry_counts``: what failed by our fault before is tried again, rather than told.
    """

    project_id: str
    base_model: str
    training_file_id: str
    validation_file_id: str | None
    hyperparameters: Hyperparameters
    prices: PriceList
    retry_model: bool
    retry_counts: bool


@dataclass(frozen=True, kw_only=True)
class Warn:
    """Something that the user should know about a file that is used."""

    message: str
    data: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Not yet. ``message`` completes the sentence "Waiting for …"."""

    message: str
    reason: UnavailableReason | None = None
    training_file_lines: int | None = None
    train_tokenization: str | None = None
    validation_tokenization: str | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Never: by fault of the ``user`` (the inputs) or of the ``platform``."""

    fault: Literal["user", "platform"]
    kind: str
    message: str
    hint: str | None
    param: str | None = None
    reason: UnavailableReason | None = None


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Priced, for these weights and tokens."""

    quote: Quote
    base_model_revision: str | None
    training_file_lines: int | None
    train_tokenization: str
    validation_tokenization: str | None
    warnings: tuple[Warn, ...]


@dataclass(frozen=True, kw_only=True)
class _Input:
    role: Role
    file: FileView


def assess(tx: Session, plan: Plan, *, now: datetime) -> Wait | Refusal | Ready:
    """Return where a plan stands, asking for what is missing: the base model, the token counts."""
    inputs = _load_inputs(tx, plan)
    if isinstance(inputs, Refusal):
        return inputs
    for one in inputs:
        if (obstacle := check_file(one.role, one.file)) is not None:
            return obstacle
    model = _load_model(tx, plan, now=now)
    if not isinstance(model, ModelView):
        return model
    return _assess_counts(tx, plan, inputs, model, now=now)


def _assess_counts(
    tx: Session, plan: Plan, inputs: list[_Input], model: ModelView, *, now: datetime
) -> Wait | Refusal | Ready:
    # In one order for all: two jobs that use each other's files must not wait for each other.
    ordered = sorted(inputs, key=lambda one: one.file.sha256)
    counted = {one.role: _request_counts(tx, plan, one, model, now=now) for one in ordered}
    for one in inputs:
        if (refusal := check_counts(one.role, one.file, counted[one.role])) is not None:
            return refusal
    train, validation = counted["training"], counted.get("validation")
    lines = inputs[0].file.line_count
    if any(view.counts is None for view in counted.values()):
        return Wait(
            message="the tokens to be counted",
            training_file_lines=lines,
            train_tokenization=train.key,
            validation_tokenization=validation.key if validation else None,
        )
    quote = price(plan.hyperparameters, model, counted, plan.prices)
    if isinstance(quote, Refusal):
        return quote
    return Ready(
        quote=quote,
        base_model_revision=model.revision,
        training_file_lines=lines,
        train_tokenization=train.key,
        validation_tokenization=validation.key if validation else None,
        warnings=tuple(warning for one in inputs for warning in list_warnings(one.file, counted[one.role])),
    )


def _load_inputs(tx: Session, plan: Plan) -> list[_Input] | Refusal:
    named: list[tuple[Role, str | None]] = [
        ("training", plan.training_file_id),
        ("validation", plan.validation_file_id),
    ]
    inputs = []
    for role, file_id in named:
        if file_id is None:
            continue
        try:
            inputs.append(_Input(role=role, file=files.get_file(tx, plan.project_id, file_id)))
        except NotFound as error:
            return Refusal(
                fault="user",
                kind="data",
                message=f"the {role} file is gone: {file_id}",
                hint=error.hint or "upload it again and create a new job",
                param=f"{role}_file",
                reason=_INVALID[role],
            )
    return inputs


def check_file(role: Role, file: FileView) -> Wait | Refusal | None:
    """Return what keeps this file from being used, None when nothing does."""
    param = f"{role}_file"
    name = f"{role} file {file.id} ({file.filename})"
    if file.purpose != "fine-tune":
        return Refusal(
            fault="user",
            kind="data",
            message=f"the {name} has the purpose {file.purpose}",
            hint="upload it with purpose fine-tune",
            param=param,
            reason=_INVALID[role],
        )
    if file.processing_status == "INVALID_FORMAT":
        return Refusal(
            fault="user",
            kind="data",
            message=f"the {name} is not valid: {_describe_first_error(file.report or {})}",
            hint="correct the lines that its report names, upload it again and create a new job",
            param=param,
            reason=_INVALID[role],
        )
    if file.processing_status == "FAILED":
        return Refusal(
            fault="platform",
            kind="file_check",
            message=f"the {name} could not be checked: {file.failure or 'no reason was kept'}",
            hint="upload it again",
            param=param,
            reason=_NOT_CHECKED[role],
        )
    if file.processing_status != "COMPLETED":
        return Wait(message=f"the {name} to be checked", reason=_NOT_CHECKED[role])
    return None


def _describe_first_error(report: Mapping[str, object]) -> str:
    errors = cast("list[Mapping[str, object]]", report.get("errors") or [])
    if not errors:
        return "see its report"
    first = errors[0]
    place = f"line {first.get('line')}" + (f", {first['path']}" if first.get("path") else "")
    count = cast("int", report.get("error_count") or len(errors))
    lead = "" if count == 1 else f"{count} errors, the first in "
    return f"{lead}{place}: {first.get('message')}"


def _load_model(tx: Session, plan: Plan, *, now: datetime) -> ModelView | Wait | Refusal:
    try:
        model = catalog.get_model(tx, plan.base_model)
    except NotFound as error:
        return Refusal(
            fault="platform",
            kind="base_model",
            message=f"the base model was taken out of the catalog: {plan.base_model}",
            hint=error.hint,
            param="model",
        )
    if model.status == "ready":
        return model
    if model.status == "failed" and not plan.retry_model:
        return Refusal(
            fault="platform",
            kind="base_model",
            message=f"the base model {model.name} could not be fetched: {model.error or 'no reason was kept'}",
            hint="the operator can look into it with: luthier models list",
            param="model",
        )
    catalog.request_fetch(tx, model.name, now=now)
    return Wait(message=f"the base model {model.name} to be fetched")


def _request_counts(tx: Session, plan: Plan, one: _Input, model: ModelView, *, now: datetime) -> TokenizationView:
    assert model.tokenizer_digest is not None, f"{model.name} is ready without a tokenizer digest"
    return quotes.request(
        tx,
        file_sha256=one.file.sha256,
        file_object_key=one.file.object_key,
        model=model.name,
        tokenizer_digest=model.tokenizer_digest,
        max_seq_length=plan.hyperparameters.max_seq_length,
        train_on_inputs=plan.hyperparameters.train_on_inputs,
        retry_failed=plan.retry_counts,
        now=now,
    )


def check_counts(role: Role, file: FileView, counted: TokenizationView) -> Refusal | None:
    """Return why a file cannot be trained on although its format is valid, None when it can or is not counted yet."""
    name = f"{role} file {file.id} ({file.filename})"
    if counted.status == "rejected":
        error = counted.error or {}
        return Refusal(
            fault="user",
            kind="data",
            message=f"the {name} cannot be used: {error.get('message')}",
            hint=error.get("hint"),
            param=f"{role}_file",
            reason=_INVALID[role],
        )
    if counted.status == "failed":
        error = counted.error or {}
        return Refusal(
            fault="platform",
            kind="tokenising",
            message=f"the tokens of the {name} could not be counted: {error.get('message')}",
            hint=error.get("hint"),
            param=f"{role}_file",
        )
    if counted.counts is not None and _read_count(counted, "trained_tokens") == 0:
        return Refusal(
            fault="user",
            kind="data",
            message=f"the {name} has no token to train on",
            hint="give each row an assistant message or a completion, or set train_on_inputs to true",
            param=f"{role}_file",
            reason=_INVALID[role],
        )
    return None


def price(
    hyperparameters: Hyperparameters,
    model: ModelView,
    counted: Mapping[Role, TokenizationView],
    prices: PriceList,
) -> Quote | Refusal:
    """Price a job whose tokens are counted."""
    assert model.facts is not None, f"{model.name} is ready without facts"
    try:
        rate_nanos = prices.get_rate(
            model.name, model.facts.param_count, training_type=name_training_type(hyperparameters)
        )
    except NoPublishedRate as error:
        return Refusal(
            fault="user", kind="price", message=str(error), hint="choose a smaller base model", param="model"
        )
    validation = counted.get("validation")
    return pricing.make_quote(
        train=_make_token_counts(counted["training"]),
        validation=_make_token_counts(validation) if validation else None,
        n_epochs=hyperparameters.n_epochs,
        n_evals=hyperparameters.n_evals,
        sequences_a_step=hyperparameters.batch_size * hyperparameters.gradient_accumulation_steps,
        packing=hyperparameters.packing,
        max_seq_length=hyperparameters.max_seq_length,
        rate_nanos=rate_nanos,
        prices=prices,
    )


def name_training_type(hyperparameters: Hyperparameters) -> TrainingType:
    """Return what the price list calls the kind of training."""
    return "Full" if isinstance(hyperparameters.training_type, Full) else "Lora"


def list_warnings(file: FileView, counted: TokenizationView) -> Iterable[Warn]:
    """Tell which rows of a counted file are cut or left out."""
    truncated = _read_count(counted, "truncated_rows")
    if truncated:
        lines = _read_lines(counted, "truncated_lines")
        rows = "1 row is" if truncated == 1 else f"{truncated} rows are"
        yield Warn(
            message=f"{file.filename}: {rows} longer than max_seq_length and cut there: {_describe_lines(lines, truncated)}",
            data={"file_id": file.id, "rows": truncated, "lines": lines},
        )
    dropped = _read_count(counted, "dropped_rows")
    if dropped:
        lines = _read_lines(counted, "dropped_lines")
        rows = "1 row has" if dropped == 1 else f"{dropped} rows have"
        left_out = "is" if dropped == 1 else "are"
        yield Warn(
            message=f"{file.filename}: {rows} no token to train on and {left_out} left out: {_describe_lines(lines, dropped)}",
            data={"file_id": file.id, "rows": dropped, "lines": lines},
        )


def _describe_lines(lines: list[int], count: int) -> str:
    shown = ", ".join(str(line) for line in lines[:_SHOWN_LINES])
    more = f" and {count - _SHOWN_LINES} more" if count > _SHOWN_LINES else ""
    return f"line{'' if count == 1 else 's'} {shown}{more}"


def _make_token_counts(counted: TokenizationView) -> TokenCounts:
    return TokenCounts(
        rows=_read_count(counted, "used_rows"),
        tokens=_read_count(counted, "tokens"),
        packs=_read_count(counted, "packs"),
    )


def _read_count(counted: TokenizationView, name: str) -> int:
    assert counted.counts is not None, f"tokenization {counted.key} is not counted"
    return cast("int", counted.counts[name])


def _read_lines(counted: TokenizationView, name: str) -> list[int]:
    assert counted.counts is not None, f"tokenization {counted.key} is not counted"
    return cast("list[int]", counted.counts[name])

"""One plain sentence about a job: what is going on, or what it waits for and the way out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.billing.money import format_money
from luthier.jobs import states
from luthier.jobs.schemas import SupervisorView
from luthier.jobs.tables import Job

_NO_SUPERVISOR = "no supervisor is running, so nothing moves; start one with: luthier serve, or luthier supervise"


@dataclass(frozen=True)
class Surroundings:
    """What else decides how a job moves. ``supervisors`` is None when nobody looked."""

    supervisors: Sequence[SupervisorView] | None = None


def explain(job: Job, surroundings: Surroundings, *, queue_depth: int | None) -> str:
    """Return why a job is where it is."""
    if job.state in states.TERMINAL:
        return _explain_end(job)
    match job.state:
        case "pending":
            text = f"Waiting for {job.waiting_for}"
        case "queued":
            text = _explain_queue(queue_depth or 0, surroundings)
        case "running":
            text = _explain_training(job)
        case "compressing":
            text = "Training is done; the outputs are being written and compressed"
        case "uploading":
            text = "Training is done; the outputs are being stored"
        case _:
            text = "Being cancelled: the worker ends after the step that it is in"
    return _add_stall(text, surroundings)


def _explain_end(job: Job) -> str:
    match job.state:
        case "completed":
            return f"Completed as {job.output_name}; {_describe_charge(job)}"
        case "cancelled":
            reason = f" ({job.error_message})" if job.error_message else ""
            return f"Cancelled {_describe_steps(job)}{reason}; {_describe_charge(job)}"
        case "user_error":
            return f"Ended by a fault in its inputs: {job.error_message}; nothing was charged"
        case _:
            return f"Ended by a fault of the platform: {job.error_message}; nothing was charged"


def _explain_queue(ahead: int, surroundings: Surroundings) -> str:
    if ahead:
        return f"Waiting in the queue: {ahead} {'job is' if ahead == 1 else 'jobs are'} ahead"
    slots = sum(one.slots for one in surroundings.supervisors or ())
    slot_text = f" of {slots}" if slots > 1 else ""
    return f"Next in the queue, waiting for a slot{slot_text} to be free"


def _explain_training(job: Job) -> str:
    if job.total_steps is None:
        return f"Loading the base model {job.base_model}"
    return f"Training: step {job.step} of {job.total_steps}"


def _describe_steps(job: Job) -> str:
    return f"after step {job.step} of {job.total_steps}" if job.total_steps else "before the first step"


def _describe_charge(job: Job) -> str:
    if not job.charged_nanos:
        return "nothing was charged"
    return f"{format_money(job.charged_nanos, job.currency or 'USD')} charged"


def _add_stall(text: str, surroundings: Surroundings) -> str:
    if surroundings.supervisors is None or surroundings.supervisors:
        return text
    return f"{text}; {_NO_SUPERVISOR}"

"""A whole job, from top to bottom."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from luthier.datasets.tokens import open_tokens
from luthier.protocol import layout
from luthier.protocol.journal import (
    EpochComplete,
    Exporting,
    Finished,
    JournalWriter,
    ModelLoaded,
    Notice,
    Started,
    TrainingStarted,
)
from luthier.protocol.spec import Lora, TrainingSpec
from luthier.training import devices, lora
from luthier.training.batches import Rows
from luthier.training.devices import Place
from luthier.training.export import Exporter
from luthier.training.failures import DataFault, Progress
from luthier.training.loop import Trainer
from luthier.training.model import load_model
from luthier.training.plan import make_plan
from luthier.training.watch import Pulse, Stopped


def run_job(
    directory: Path, spec: TrainingSpec, journal: JournalWriter, stop: threading.Event, progress: Progress
) -> Finished:
    """Train, write the outputs and return the journal's last message. Raises whatever goes wrong.

    ``stop`` ends the training at its next batch. Once that is over it counts no more: the outputs are written.
    """
    chosen = spec.hyperparameters
    place = devices.choose_place(spec.device)
    devices.make_deterministic(chosen.random_seed, spec.device.threads)
    _tell_start(spec, place, journal)

    rows = _read_rows(directory / layout.TRAIN_TOKENS, place)
    validation = _read_rows(directory / layout.VALIDATION_TOKENS, place) if chosen.n_evals else None
    plan = make_plan(rows.lengths, chosen)

    model = load_model(spec.base_model, place, trains_all=not isinstance(chosen.training_type, Lora))
    adapted = lora.attach(model.module, chosen.training_type) if isinstance(chosen.training_type, Lora) else {}
    journal.write(ModelLoaded(param_count=model.param_count, trainable_param_count=model.count_trained()))

    pulse = Pulse(journal, stop)
    trainer = Trainer(model, rows, validation, plan, chosen, pulse=pulse)
    exporter = Exporter(directory, spec, dict(model.module.named_parameters()), adapted)
    journal.write(
        TrainingStarted(
            total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch, train_tokens=sum(rows.lengths)
        )
    )
    try:
        for step in plan.iterate_steps(chosen.random_seed):
            journal.write(trainer.take_step(step))
            progress.step = step.number
            if step.ends_epoch:
                journal.write(EpochComplete(epoch=step.epoch, step=step.number))
            if step.number in plan.evaluate_at:
                journal.write(trainer.evaluate(step))
            if step.number in plan.save_at:
                trainer.require_finite_weights()
                journal.write(exporter.save_checkpoint(step.number, trainer.results), durable=True)
        pulse.require_wanted()
    except Stopped:
        return Finished(step=progress.step, epochs_completed=progress.step // plan.steps_per_epoch, stopped=True)

    trainer.require_finite_weights()
    journal.write(Exporting(step=progress.step))
    for kind in exporter.list_outputs():
        journal.write(exporter.save_output(kind, progress.step, trainer.results), durable=True)
    return Finished(step=progress.step, epochs_completed=plan.n_epochs)


def _tell_start(spec: TrainingSpec, place: Place, journal: JournalWriter) -> None:
    journal.write(
        Started(
            pid=os.getpid(),
            device=str(place.device),
            precision=place.precision,
            threads=spec.device.threads,
            versions=devices.get_versions(),
        )
    )
    if place.precision == "bf16" and not devices.has_native_bf16(place.device):
        message = "this machine has no arithmetic for bf16, which is far slower here than fp32; set precision to auto"
        journal.write(Notice(message=message))


def _read_rows(path: Path, place: Place) -> Rows:
    """Return the rows of a token file. Raises DataFault when there is none."""
    rows = Rows(open_tokens(path), place.device)
    if not rows.lengths:
        message = f"no row of {path.stem} has a token to train on"
        raise DataFault(message, "give each row an assistant message, or a completion, that is not empty")
    return rows

"""One optimizer step, one evaluation, and how long the rest will take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from luthier.protocol.journal import Metric
from luthier.protocol.spec import Hyperparameters
from luthier.training.batches import Batch, Rows
from luthier.training.card import Results
from luthier.training.failures import NonFiniteLoss
from luthier.training.model import Model
from luthier.training.optimizer import AdamW
from luthier.training.plan import Plan, Step
from luthier.training.schedule import get_factor
from luthier.training.watch import Pulse

# How many tokens are computed at once. It changes neither the step (the gradient of a step is a sum over its tokens)
# nor the memory that batch_size needs. Measured on a CPU: 512 keep a block's activations in the cache; accelerators
# want more work a call.
BATCH_TOKENS = {"cpu": 512, "cuda": 8192, "mps": 2048}
EVALUATION_COST = 1 / 3  # of a training pass: forward without backward
SMOOTHING = 0.3  # weight of the newest step in the pace: the last few steps decide


class Trainer:
    """Takes the steps of one job and evaluates it; ``results`` are where it stands."""

    def __init__(
        self,
        model: Model,
        rows: Rows,
        validation: Rows | None,
        plan: Plan,
        hyperparameters: Hyperparameters,
        *,
        pulse: Pulse,
    ) -> None:
        self._model = model
        self._rows = rows
        self._validation = validation
        self._plan = plan
        self._chosen = hyperparameters
        self._pulse = pulse
        self._optimizer = AdamW(
            [parameter for parameter in model.module.parameters() if parameter.requires_grad],
            weight_decay=hyperparameters.weight_decay,
            max_grad_norm=hyperparameters.max_grad_norm,
        )
        self._batch_tokens = BATCH_TOKENS[model.place.device.type]
        self._pace = Pace(
            train_tokens=sum(rows.lengths) * plan.n_epochs,
            evaluation_tokens=sum(validation.lengths) * len(plan.evaluate_at) if validation else 0,
        )
        self.results = Results(total_steps=plan.total_steps, precision=model.place.precision)

    def take_step(self, step: Step) -> Metric:
        """Learn from the step's rows. Raises NonFiniteLoss or Stopped; the weights are then those of the step before."""
        started = time.monotonic()
        learning_rate = self._chosen.learning_rate * get_factor(
            self._chosen.schedule, step.number, self._plan.total_steps
        )
        loss = self._add_gradients(step)
        grad_norm = self._optimizer.step(learning_rate)
        tokens, step_s = sum(self._rows.lengths[row] for row in step.rows), time.monotonic() - started
        self.results = replace(self.results, tokens=self.results.tokens + tokens, train_loss=loss, eval_loss=None)
        return Metric(
            kind="train",
            step=step.number,
            epoch=step.number / self._plan.steps_per_epoch,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            tokens=tokens,
            step_s=step_s,
            seconds_remaining=self._pace.record_step(tokens, step_s),
        )

    def require_finite_weights(self) -> None:
        """Raise NonFiniteLoss rather than have weights written that are no numbers."""
        self._optimizer.require_finite_weights()

    def _add_gradients(self, step: Step) -> float:
        """Return the mean loss over all trained tokens of the rows, however they are divided into batches."""
        self._model.module.train()
        batches = list(self._rows.cut(step.rows, self._batch_tokens))
        targets = sum(len(batch.targets) for batch in batches)
        loss = 0.0
        for batch in self._watch(batches, step):
            part = self._model.sum_losses(batch) / max(1, targets)
            loss = require_finite(loss + part.item())
            part.backward()  # type: ignore[no-untyped-call]  # torch's own
        return loss

    def evaluate(self, step: Step) -> Metric:
        """Return the mean loss over the trained tokens of the validation rows. Raises NonFiniteLoss or Stopped."""
        assert self._validation is not None, "an evaluation without rows"
        started = time.monotonic()
        self._model.module.eval()
        total, targets = 0.0, 0
        with torch.no_grad():
            batches = self._validation.cut(range(len(self._validation.lengths)), self._batch_tokens)
            for batch in self._watch(batches, step):
                total += self._model.sum_losses(batch).item()
                targets += len(batch.targets)
        loss, tokens = require_finite(total / max(1, targets)), sum(self._validation.lengths)
        self._pace.record_evaluation(tokens)
        self.results = replace(self.results, eval_loss=loss)
        return Metric(
            kind="eval",
            step=step.number,
            epoch=step.number / self._plan.steps_per_epoch,
            loss=loss,
            tokens=tokens,
            step_s=time.monotonic() - started,
        )

    def _watch(self, batches: Iterable[Batch], step: Step) -> Iterator[Batch]:
        """Yield the batches with a beat before each."""
        tokens = 0
        for batch in batches:
            self._pulse.beat(step.number, tokens)
            yield batch
            tokens += len(batch.input_ids)


def require_finite(loss: float) -> float:
    """Return the loss. Raises NonFiniteLoss."""
    if not math.isfinite(loss):
        raise NonFiniteLoss(f"the loss is {loss}", hint="use a lower learning_rate, or max_grad_norm 1")
    return loss


class Pace:
    """Seconds a token, smoothed, and from it the seconds that the rest of the job will take."""

    def __init__(self, *, train_tokens: int, evaluation_tokens: int) -> None:
        """``train_tokens`` and ``evaluation_tokens`` are those of the whole job."""
        self._work_left = train_tokens + evaluation_tokens * EVALUATION_COST
        self._seconds_a_token: float | None = None

    def record_step(self, tokens: int, seconds: float) -> float:
        """Count a step; return the seconds that remain."""
        newest = seconds / tokens
        before = newest if self._seconds_a_token is None else self._seconds_a_token
        self._seconds_a_token = SMOOTHING * newest + (1 - SMOOTHING) * before
        self._work_left -= tokens
        return max(0.0, self._work_left * self._seconds_a_token)

    def record_evaluation(self, tokens: int) -> None:
        """Count an evaluation."""
        self._work_left -= tokens * EVALUATION_COST

"""The hyper-parameters that a job takes, as options, and the request body that they make.

Ranges are checked by the server, which knows the model's limits; it names every value that is
out of range at once. Whatever is not given is left to the server's defaults.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

DATA, TRAINING, OPTIMISER, WEIGHTS = "Data and model", "Training", "Optimiser", "Which weights are trained"


class Scheduler(StrEnum):
    """How the learning rate falls."""

    COSINE = "cosine"
    LINEAR = "linear"


class TrainingType(StrEnum):
    """Adapters, or every weight."""

    LORA = "lora"
    FULL = "full"


class TrainOnInputs(StrEnum):
    """Whether prompts are learnt too."""

    AUTO = "auto"
    TRUE = "true"
    FALSE = "false"


def _option(*names: str, help: str, panel: str, metavar: str | None = None) -> Any:  # noqa: A002 - typer's own name
    return typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False)


Model = Annotated[
    str, _option("--model", "-m", metavar="NAME", panel=DATA, help="Base model; see `luthier models list`.")
]
ValidationFile = Annotated[
    str | None,
    _option(
        "--validation-file", metavar="FILE", panel=DATA, help="File id or local file for --n-evals. Default: none."
    ),
]
Suffix = Annotated[
    str | None,
    _option("--suffix", metavar="TEXT", panel=DATA, help="Part of the output model's name, up to 64 characters."),
]
NEpochs = Annotated[
    int | None, _option("--n-epochs", metavar="N", panel=TRAINING, help="Passes over the data. Default 1; 1 to 20.")
]
BatchSize = Annotated[
    str | None,
    _option(
        "--batch-size", metavar="N", panel=TRAINING,
        help="Sequences a step, or max. Default max; the model's limits: `luthier models show`.",
    ),
]  # fmt: skip
GradientAccumulationSteps = Annotated[
    int | None,
    _option(
        "--gradient-accumulation-steps", metavar="N", panel=TRAINING,
        help="Batches a step, so that the effective batch is larger. Default: the model's.",
    ),
]  # fmt: skip
MaxSeqLength = Annotated[
    int | None,
    _option(
        "--max-seq-length", metavar="N", panel=TRAINING, help="Longer rows are cut. Default: the longest of the model."
    ),
]
Packing = Annotated[
    bool | None,
    _option(
        "--packing/--no-packing", panel=TRAINING,
        help="Put short rows together into one sequence. Default on; off costs rows × max-seq-length tokens.",
    ),
]  # fmt: skip
NEvals = Annotated[
    int | None,
    _option("--n-evals", metavar="N", panel=TRAINING, help="Evaluations on the validation file. Default 0; 0 to 100."),
]
NCheckpoints = Annotated[
    int | None, _option("--n-checkpoints", metavar="N", panel=TRAINING, help="Checkpoints to keep. Default 1.")
]
RandomSeed = Annotated[
    int | None, _option("--random-seed", metavar="N", panel=TRAINING, help="Seed of all chance. Default 42.")
]
LearningRate = Annotated[
    float | None,
    _option("--learning-rate", metavar="X", panel=OPTIMISER, help="Peak rate. Default 1e-5; 1e-8 to 0.01."),
]
LrScheduler = Annotated[
    Scheduler | None,
    _option("--lr-scheduler", panel=OPTIMISER, help="How the rate falls: cosine or linear. Default cosine."),
]
MinLrRatio = Annotated[
    float | None,
    _option("--min-lr-ratio", metavar="X", panel=OPTIMISER, help="Last rate over peak rate. Default 0; 0 to 1."),
]
NumCycles = Annotated[
    float | None,
    _option("--num-cycles", metavar="X", panel=OPTIMISER, help="Cosine cycles. Default 0.5: one fall."),
]
WarmupRatio = Annotated[
    float | None,
    _option(
        "--warmup-ratio",
        metavar="X",
        panel=OPTIMISER,
        help="Share of steps in which the rate rises. Default 0; 0 to 1.",
    ),
]
MaxGradNorm = Annotated[
    float | None,
    _option("--max-grad-norm", metavar="X", panel=OPTIMISER, help="Clip gradients to this norm. Default 1; 0 is off."),
]
WeightDecay = Annotated[
    float | None, _option("--weight-decay", metavar="X", panel=OPTIMISER, help="AdamW's decay. Default 0.")
]
Type = Annotated[
    TrainingType | None,
    _option("--training-type", panel=WEIGHTS, help="lora (adapters) or full (every weight). Default lora."),
]
LoraR = Annotated[
    int | None, _option("--lora-r", metavar="N", panel=WEIGHTS, help="Rank of the adapters. Default: the model's.")
]
LoraAlpha = Annotated[
    int | None, _option("--lora-alpha", metavar="N", panel=WEIGHTS, help="Scale of the adapters. Default 2 × rank.")
]
LoraDropout = Annotated[
    float | None, _option("--lora-dropout", metavar="X", panel=WEIGHTS, help="Dropout in the adapters. Default 0.")
]
LoraModules = Annotated[
    str | None,
    _option(
        "--lora-trainable-modules", metavar="LIST", panel=WEIGHTS,
        help="Modules with adapters, by comma, or all-linear. Default all-linear.",
    ),
]  # fmt: skip
OnInputs = Annotated[
    TrainOnInputs | None,
    _option(
        "--train-on-inputs", panel=WEIGHTS,
        help="Learn the prompts too: auto, true or false. Default auto: for plain text only.",
    ),
]  # fmt: skip


def build_body(
    *,
    lr_scheduler: Scheduler | None = None,
    min_lr_ratio: float | None = None,
    num_cycles: float | None = None,
    training_type: TrainingType | None = None,
    train_on_inputs: TrainOnInputs | None = None,
    batch_size: str | None = None,
    **plain: Any,
) -> dict[str, Any]:
    """Return the request's body with what was given, and nothing else.

    ``plain`` are fields by their wire names, the LoRA ones among them.
    """
    lora = {name: value for name, value in plain.items() if name.startswith("lora_") and value is not None}
    body = {name: value for name, value in plain.items() if not name.startswith("lora_") and value is not None}
    if training_type or lora:
        body["training_type"] = {"type": "Full" if training_type is TrainingType.FULL else "Lora", **lora}
    if train_on_inputs:
        value = "auto" if train_on_inputs is TrainOnInputs.AUTO else train_on_inputs is TrainOnInputs.TRUE
        body["training_method"] = {"method": "sft", "train_on_inputs": value}
    arguments = {"min_lr_ratio": min_lr_ratio, "num_cycles": num_cycles}
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if lr_scheduler or arguments:
        body["lr_scheduler"] = {"lr_scheduler_type": (lr_scheduler or Scheduler.COSINE).value}
        if arguments:
            body["lr_scheduler"]["lr_scheduler_args"] = arguments
    if batch_size is not None:
        body["batch_size"] = _parse_batch_size(batch_size)
    return body


def _parse_batch_size(text: str) -> int | str:
    if text == "max":
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a whole number nor max", param_hint="--batch-size") from None

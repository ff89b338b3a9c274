"""The body that asks for a job, in every route that takes one, as documented in OpenAPI.

For documentation only: ``jobs.hyperparameters`` judges the values, and tells every problem at once.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Body
from pydantic import BaseModel, ConfigDict, Field

JsonBody = Annotated[dict[str, Any], Body()]


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")


class TrainingType(_Body):
    """Which weights are trained; the other fields are for LoRA."""

    type: Literal["Lora", "Full"] = "Lora"
    lora_r: int | None = Field(default=None, description="Rank; the model's default when left out")
    lora_alpha: int | None = Field(default=None, description="Scale; twice the rank when left out")
    lora_dropout: float = 0.0
    lora_trainable_modules: str = Field(default="all-linear", description="Comma-separated, or all-linear")


class TrainingMethod(_Body):
    """What is optimised."""

    method: Literal["sft"] = "sft"
    train_on_inputs: bool | Literal["auto"] = Field(
        default="auto", description="auto: prompts are masked for instruction and conversation data, not for text"
    )


class SchedulerArgs(_Body):
    """The learning rate's fall; ``num_cycles`` for cosine only."""

    min_lr_ratio: float = 0.0
    num_cycles: float = 0.5


class Scheduler(_Body):
    """The learning rate over the steps."""

    lr_scheduler_type: Literal["cosine", "linear"] = "cosine"
    lr_scheduler_args: SchedulerArgs | None = None


class EstimateBody(_Body):
    """What a price depends on; other fields of a create are accepted and change nothing."""

    training_file: str
    validation_file: str | None = None
    model: str = Field(description="Name of a base model, see /v1/models")
    n_epochs: int = 1
    n_evals: int = Field(default=0, description="Evaluations over the job, at most one a step; needs validation_file")
    batch_size: int | Literal["max"] = "max"
    gradient_accumulation_steps: int | None = None
    packing: bool = Field(default=True, description="False bills every row as a whole sequence")
    max_seq_length: int | None = Field(default=None, description="The model's limit when left out")
    training_type: TrainingType | None = None
    training_method: TrainingMethod | None = None


class JobBody(EstimateBody):
    """A job. Limits of the values: GET /v1/fine-tunes/models/limits."""

    suffix: str | None = Field(default=None, description="Becomes part of the output model's name")
    n_checkpoints: int = 1
    learning_rate: float = 1e-5
    lr_scheduler: Scheduler | None = None
    warmup_ratio: float = 0.0
    max_grad_norm: float = Field(default=1.0, description="0 switches clipping off")
    weight_decay: float = 0.0
    random_seed: int = 42


def document_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI fragment of a route whose JSON body looks like ``model``."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema)}}}}


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """Put the definitions where they are referred to: a fragment cannot add to the document's components."""
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rpartition("/")[2]])
        return {key: resolve(value) for key, value in node.items()}

    resolved: dict[str, Any] = resolve(schema)
    return resolved

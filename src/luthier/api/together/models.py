"""Base models in the Together dialect: which there are, and what a job may ask of them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from luthier.api.auth import PrincipalParam
from luthier.api.context import ServicesParam
from luthier.catalog import service as catalog
from luthier.catalog.limits import Limits, get_limits
from luthier.catalog.service import ModelView
from luthier.jobs import service as jobs

router = APIRouter(tags=["models"])


class LoraLimits(BaseModel):
    """Limits of LoRA training."""

    model_config = ConfigDict(from_attributes=True)

    default_rank: int
    max_rank: int
    min_batch_size: int
    max_batch_size: int
    max_batch_size_dpo: int
    target_modules: list[str]


class FullLimits(BaseModel):
    """Limits of full training."""

    model_config = ConfigDict(from_attributes=True)

    min_batch_size: int
    max_batch_size: int
    max_batch_size_dpo: int


class ModelLimits(BaseModel):
    """What a job may ask of a base model. Without ``full_training``, only LoRA is offered for it."""

    model_config = ConfigDict(from_attributes=True, protected_namespaces=())

    model_name: str
    max_num_epochs: int
    max_num_evals: int
    max_num_checkpoints: int
    min_learning_rate: float
    max_learning_rate: float
    min_max_seq_length: int
    max_seq_length_sft: int
    max_seq_length_dpo: int
    default_gradient_accumulation_steps: int
    merge_output_lora: bool
    supports_full_training: bool
    supports_tools: bool
    supports_reasoning: bool
    supports_vision: bool
    lora_training: LoraLimits
    full_training: FullLimits | None


class SupportedModels(BaseModel):
    """The base models that can be fine-tuned here, by name and with their limits."""

    models: list[str]
    detailed_models: list[ModelLimits]


class Pricing(BaseModel):
    """Prices of inference, which this server does not offer; older clients require the object."""


class Model(BaseModel):
    """A base model, as the list of models shows it."""

    id: str
    object: Literal["model"] = "model"
    type: Literal["chat", "language"] | None = None
    display_name: str
    organization: str
    context_length: int | None = None
    pricing: Pricing = Field(default_factory=Pricing)


@router.get("/v1/fine-tunes/models/limits", response_model_exclude_none=True)
def get_model_limits(
    principal: PrincipalParam, services: ServicesParam, model_name: Annotated[str, Query()]
) -> ModelLimits:
    """Tell the limits of a base model, or of the one that a job or an output model was made from."""
    with services.database.read() as tx:
        base_model = jobs.find_base_model(tx, principal.project_id, model_name) or model_name
        return _describe_limits(get_limits(catalog.get_model(tx, base_model)))


@router.get("/v1/fine-tunes/models/supported", response_model_exclude_none=True)
def list_supported_models(principal: PrincipalParam, services: ServicesParam) -> SupportedModels:
    """List the base models that can be fine-tuned here."""
    del principal
    with services.database.read() as tx:
        models = catalog.list_models(tx)
    return SupportedModels(
        models=[model.name for model in models],
        detailed_models=[_describe_limits(model.limits) for model in models if model.limits is not None],
    )


@router.get("/v1/models", response_model_exclude_none=True)
def list_models(principal: PrincipalParam, services: ServicesParam) -> list[Model]:
    """List the base models."""
    del principal
    with services.database.read() as tx:
        return [_describe(model) for model in catalog.list_models(tx)]


def _describe_limits(limits: Limits) -> ModelLimits:
    return ModelLimits.model_validate(limits)


def _describe(model: ModelView) -> Model:
    return Model(
        id=model.name,
        type=("chat" if model.facts.has_chat_template else "language") if model.facts else None,
        display_name=model.name.rpartition("/")[2],
        organization=model.name.partition("/")[0],
        context_length=model.facts.context_length if model.facts else None,
    )

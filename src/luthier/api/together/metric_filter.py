"""Which metrics are asked for. Some clients send the filters in the query, others as a JSON body of the GET."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, Field, ValidationError

MAX_STEP = 2**53  # the largest number that every JSON parser reads exactly


def _assume_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Step = Annotated[int, Field(ge=0, le=MAX_STEP)]
Moment = Annotated[datetime, AfterValidator(_assume_utc)]


class MetricFilter(BaseModel):
    """Bounds are included; times without a zone are UTC. ``resolution``: so many training metrics, evenly spread."""

    global_step_from: Step | None = None
    global_step_to: Step | None = None
    logged_at_from: Moment | None = None
    logged_at_to: Moment | None = None
    resolution: Annotated[int, Field(ge=1, le=MAX_STEP)] | None = None


async def read_metric_filter(request: Request, in_query: Annotated[MetricFilter, Query()]) -> MetricFilter:
    """Return the filters of query and body together; the body's win."""
    body = await request.body()
    if not body:
        return in_query
    try:
        in_body = MetricFilter.model_validate_json(body)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise RequestValidationError(problems) from None
    return in_query.model_copy(update=in_body.model_dump(exclude_unset=True))


MetricFilterParam = Annotated[MetricFilter, Depends(read_metric_filter)]

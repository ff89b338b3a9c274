"""Every error as one JSON shape: ``{"error": {message, type, param, code, hint, request_id[, details]}}``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from luthier.api.media_types import is_json
from luthier.db import outages
from luthier.errors import InvalidRequest, NotFound, ServiceError, Unavailable, Unprocessable
from luthier.log import get_logger
from luthier.storage import StorageFailed

EXIT_STORAGE_FAILED = 74  # EX_IOERR of sysexits.h

# These clients show an error's message and nothing else of it, so the way out must stand there for them.
_MESSAGE_ONLY_CLIENTS = ("Together/", "AsyncTogether/")

_log = get_logger("luthier.api")


def install(app: FastAPI) -> None:
    """Make the app render every error in our shape."""
    app.add_exception_handler(ServiceError, _handle_service_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(StorageFailed, _handle_storage_failed)
    app.add_exception_handler(SQLAlchemyError, _handle_database_error)


def render(error: ServiceError, request_id: str, **top_level: object) -> JSONResponse:
    """Return the response that tells an error; ``top_level`` fields stand beside ``error`` in the body."""
    body: dict[str, object] = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        "hint": error.hint,
        "request_id": request_id,
    }
    if error.details:
        body["details"] = error.details
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": body, **top_level}, status_code=error.status, headers=headers)


class Unexpected(ServiceError):
    """Our own fault; the log has what the answer must not tell."""

    status = 500
    type = "server_error"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            "internal_error",
            "the server failed in a way that it did not expect",
            hint=f"try again; if it stays, tell the operator this request's id: {request_id}",
        )


class MethodNotAllowed(ServiceError):
    """The route does not have this method."""

    status = 405


class UnsupportedMediaType(ServiceError):
    """The body is of a kind that the route does not read."""

    status = 415


async def _handle_service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return _render_for(request, error)


async def _handle_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    first = problems[0]
    if first["loc"] == ("body",) and first["type"] != "missing" and not is_json(request.headers):
        return _render_for(request, _describe_content_type(request))
    return _render_for(request, describe_validation(problems))


def _describe_content_type(request: Request) -> ServiceError:
    """Tell why a body that may well be JSON was not read as such."""
    sent = request.headers.get("content-type", "none")
    return UnsupportedMediaType(
        "not_announced_as_json",
        f"the body is not announced as JSON: Content-Type is {sent[:80]}",
        hint="send the header Content-Type: application/json; with curl: -H 'Content-Type: application/json'",
    )


def _render_for(request: Request, error: ServiceError) -> JSONResponse:
    """Render an error so that the client which asks shows its hint too."""
    if error.hint and request.headers.get("user-agent", "").startswith(_MESSAGE_ONLY_CLIENTS):
        error.message = f"{error.message}; hint: {error.hint}"
    return render(error, request.state.request_id)


def describe_validation(problems: Sequence[Any]) -> ServiceError:
    """Return one error that names the first field at fault and lists all of them."""
    details = [
        {"param": _name_field(problem["loc"]), "message": _describe_problem(problem), "hint": None}
        for problem in problems
    ]
    first = details[0]
    return Unprocessable(
        "invalid_request_body",
        f"{first['param']}: {first['message']}" if first["param"] else str(first["message"]),
        param=first["param"],
        hint="the request has fields that are missing or of the wrong type; see /openapi.json for the documented shape",
        details=details,
    )


def _name_field(location: Sequence[str | int]) -> str | None:
    """Turn ``("body", "lora", "r")`` into ``lora.r``: as the caller wrote it."""
    return ".".join(str(part) for part in location[1:]) or None


def _describe_problem(problem: dict[str, Any]) -> str:
    """Name what was expected and, unless it is large, the value that came instead."""
    message = str(problem["msg"])
    value = problem.get("input")
    if problem["type"] == "missing" or not isinstance(value, str | int | float | bool):
        return message
    return f"{message}: {str(value)[:80]!r}"


async def _handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Tell the framework's own errors: no such route, a method that the route does not have, a malformed body."""
    assert isinstance(error, HTTPException)
    response = render(_translate(request, error), request.state.request_id)
    response.headers.update(error.headers or {})
    return response


def _translate(request: Request, error: HTTPException) -> ServiceError:
    route = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound("route_not_found", f"there is no route: {route}", hint="see /openapi.json for all routes")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        return MethodNotAllowed(
            "method_not_allowed", f"the route does not have this method: {route}", hint=f"use {allowed}"
        )
    translated = InvalidRequest(
        "malformed_request", str(error.detail), hint="see /openapi.json for the documented shape"
    )
    translated.status = error.status_code
    return translated


async def _handle_database_error(request: Request, error: Exception) -> JSONResponse:
    """Answer what the world does to the database; what we did to it goes on to the edge, as any fault of ours."""
    assert isinstance(error, SQLAlchemyError)
    outage = outages.find_outage(error)
    if outage is None:
        raise error
    _log.error("database_unavailable", outage=outage, error=type(error).__name__)  # its text may hold the URL
    return _render_for(request, outages.describe(outage))


async def _handle_storage_failed(request: Request, error: Exception) -> JSONResponse:
    """Answer, then end the process: after a failed fsync only a new one can tell what the medium holds.

    Nothing is lost by it: no row points to the bytes, and whatever else was under way is made to survive a kill.
    """
    assert isinstance(error, StorageFailed)
    _log.critical("storage_failed", error=str(error))
    failure = Unavailable(
        "storage_failed",
        "the server's disk did not keep what was written; the server ends now, nothing of this was kept",
        hint="the operator should look at the disk (dmesg, smartctl), then start the server again",
        retry_after_s=30,
    )
    response = render(failure, request.state.request_id)
    response.background = BackgroundTask(os._exit, EXIT_STORAGE_FAILED)
    return response

"""The error tree that every layer raises and the edges (HTTP, CLI) render.

    ServiceError                     the caller's fault, or a state that the caller can act on
    ├── InvalidRequest        400    a value is wrong
    ├── Unauthenticated       401    no key was sent
    ├── PaymentRequired       402    funds or a limit
    ├── Forbidden             403    the key is not valid, or may not do this
    ├── NotFound              404    unknown, or not yours
    ├── Conflict              409    the state does not allow it
    ├── TooLarge              413    over a documented limit
    ├── Unprocessable         422    the body's shape is wrong
    ├── TooManyRequests       429    slow down
    └── Unavailable           503    the service cannot do it now

The world's faults (a lost connection, a full disk) are exceptions of the package that meets them.
Ours are assertions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class ServiceError(Exception):
    """An error with a stable code, a message that names the value and a hint that names the way out.

    Message and hint are one sentence each, without a final period. ``param`` is the request field at
    fault, as the caller wrote it (dotted for nested fields). ``details`` lists every problem when there is more
    than one to tell, each as ``{"param", "message", "hint"}``.
    """

    status = 400
    type = "invalid_request_error"

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        details: Sequence[Mapping[str, object]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = [dict(detail) for detail in details]


class InvalidRequest(ServiceError):
    """A value in the request is wrong."""


class Unauthenticated(ServiceError):
    """No API key was sent."""

    status = 401
    type = "authentication_error"


class PaymentRequired(ServiceError):
    """Funds or a spending limit do not allow it."""

    status = 402
    type = "billing_error"


class Forbidden(ServiceError):
    """The key is unknown, revoked or expired, or its role may not do this."""

    status = 403
    type = "permission_error"


class NotFound(ServiceError):
    """There is no such thing, or it belongs to another project."""

    status = 404
    type = "not_found_error"


class Conflict(ServiceError):
    """The thing's state does not allow it."""

    status = 409
    type = "conflict_error"


class TooLarge(ServiceError):
    """Over a documented limit of size."""

    status = 413


class Unprocessable(ServiceError):
    """The body does not have the documented shape."""

    status = 422


class TooManyRequests(ServiceError):
    """Over a rate limit; ``retry_after_s`` says when to come back."""

    status = 429
    type = "rate_limit_error"


class Unavailable(ServiceError):
    """The service cannot do it now; ``retry_after_s`` says when to try again."""

    status = 503
    type = "server_error"

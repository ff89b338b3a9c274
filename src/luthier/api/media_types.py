"""What a request's body is announced as."""

from __future__ import annotations

from starlette.datastructures import Headers


def is_json(headers: Headers) -> bool:
    """Tell whether the body is to be read as JSON."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")

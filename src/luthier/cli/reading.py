"""The text of an option, read as its type: what typer does through pydantic, whose import takes 0.4 s.

Only the types that our commands use; for any other typer's own reader is left in place.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import typer

_EXPECTED: dict[type, str] = {int: "a whole number", float: "a number", str: "text", Path: "a path"}


def install(params: list[Any]) -> None:
    """Give ``params`` (typer's) our reader where it can read their type."""
    for param in params:
        kind = _find_kind(param.type_descriptor)
        if kind is not None:
            param._runtime_param = _Reader(kind, param.type_descriptor.parameter_info)  # noqa: SLF001 - no public way


def _find_kind(descriptor: Any) -> type | None:
    kind = Path if descriptor.annotation == list[Path] else descriptor.annotation
    if kind in _EXPECTED or kind is bool or (isinstance(kind, type) and issubclass(kind, Enum)):
        return kind
    return None


class _Reader:
    """Stands where typer keeps its own: ``coerce`` is called with what was on the command line, or the default."""

    def __init__(self, kind: type, info: Any) -> None:
        self._kind = kind
        self._low, self._high = info.min, info.max

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value, or values, in their type. Raises BadParameter that says what was expected."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if isinstance(value, list | tuple):
            return [self._read(one, param, ctx) for one in value]
        return self._read(value, param, ctx)

    def _read(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, self._kind):
            found = value
        else:
            try:
                found = self._kind(value)
            except ValueError:
                raise typer.BadParameter(f"{self._describe()}: {value}", ctx=ctx, param=param) from None
        if (self._low is not None and found < self._low) or (self._high is not None and found > self._high):
            raise typer.BadParameter(f"{self._describe()}: {value}", ctx=ctx, param=param)
        return found

    def _describe(self) -> str:
        if issubclass(self._kind, Enum):
            return f"expected {' or '.join(str(choice.value) for choice in self._kind)}"
        bounds = [
            f"at {word} {bound}" for word, bound in (("least", self._low), ("most", self._high)) if bound is not None
        ]
        return " ".join(["expected", _EXPECTED.get(self._kind, "another value"), " and ".join(bounds)]).rstrip()

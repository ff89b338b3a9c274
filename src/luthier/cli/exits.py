"""How a command ends: the exit codes, and the failure that carries one with a message and a way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, one for each thing that a script would do next."""

    OK = 0
    NEGATIVE = 1
    USAGE = 2
    CONNECTION = 3
    REFUSED = 4
    FUNDS = 5
    SERVER = 6
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "done",
    Exit.NEGATIVE: "no: a file is not valid, a job failed or was cancelled, books are wrong",
    Exit.USAGE: "the command line is wrong",
    Exit.CONNECTION: "no server configured, none reached, or the key refused",
    Exit.REFUSED: "refused: unknown id, wrong value, not in this state",
    Exit.FUNDS: "funds or a spending limit do not allow it",
    Exit.SERVER: "the server failed or is overloaded",
    Exit.INTERRUPTED: "interrupted by ^C",
}


class Failure(Exception):
    """What ends a command early. Message and hint are one sentence each, as in ``luthier.errors``."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        exit_code: Exit,
        hint: str | None = None,
        details: Sequence[Mapping[str, object]] = (),
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.exit_code = exit_code
        self.hint = hint
        self.details = [dict(detail) for detail in details]
        self.request_id = request_id

    def to_json(self) -> dict[str, object]:
        """Return what ``--json`` prints on stderr."""
        fields = {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "details": self.details or None,
            "request_id": self.request_id,
        }
        return {"error": {name: value for name, value in fields.items() if value is not None}}

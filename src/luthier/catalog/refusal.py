"""Why a base model cannot be had: raised wherever the work finds out, told to the operator as it is."""

from __future__ import annotations


class FetchRefused(Exception):
    """The model cannot be had from this source. ``is_final``: another attempt would end the same way."""

    def __init__(self, code: str, message: str, *, hint: str | None = None, is_final: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.is_final = is_final

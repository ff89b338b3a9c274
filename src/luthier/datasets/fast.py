"""The fast path: recognise a row of the common shapes that has no issue at all, at the speed of C.

It may refuse a good row (``formats`` then looks closer) but never accepts one about which ``formats`` has anything to
say; a property test holds this. A typed decoder checks keys, types and roles. What such a decoder lets pass,
a repeated key, is found by counting: inside a JSON string a quote is escaped, so ``"role"`` stands in
the bytes once for each key that is spelt so. A key spelt with escapes would dodge the count.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from luthier.datasets import lines

CleanFormat = Literal["conversation", "instruction", "general"]

_ESCAPED_LETTER = re.compile(rb"\\u00[67]")  # a to z; DEL and the like are refused along with them
_Filled = Annotated[str, msgspec.Meta(min_length=1)]


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant"]
    content: _Filled


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Keys that are there are never empty, so that empty means absent.

    That holds for the list too: an empty one under a repeated key would add nothing to the counts.
    """

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
    clean: CleanFormat | None = None
    match bool(row.messages), bool(row.prompt), bool(row.completion), bool(row.text):
        case True, False, False, False if _is_clean_conversation(row.messages, line):
            clean = "conversation"
        case False, True, True, False if line.count(b'"prompt"') == 1 == line.count(b'"completion"'):
            clean = "instruction"
        case False, False, False, True if line.count(b'"text"') == 1:
            clean = "general"
    if b"\\u00" in line and _ESCAPED_LETTER.search(line):
        return None
    return clean


def _is_clean_conversation(messages: list[_Message], line: bytes) -> bool:
    previous, has_assistant = "", False
    for message in messages:
        role = message.role
        if role == previous or (role == "system" and previous):
            return False
        has_assistant = has_assistant or role == "assistant"
        previous = role
    return has_assistant and line.count(b'"role"') == len(messages) == line.count(b'"content"')

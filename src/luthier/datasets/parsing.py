"""One line of bytes → one JSON object, with every way that this can go wrong told apart.

The standard decoder is used for its hooks: repeated keys and NaN are seen, where faster decoders let them pass
or say less. What it accepts beyond plain JSON (lone surrogates, infinities, any depth) is refused here.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from luthier.datasets import lines
from luthier.datasets.report import Issue

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HEAD_BYTES = 4096  # of a file, enough to tell what it is
MAX_DEPTH = 64  # far beyond any tool's schema, far below the interpreter's own limit
LARGE_ROW_BYTES = 256 * 1024  # when memory ends at a row that is smaller, the row is not to blame
SHOWN_CHARACTERS = 60  # of a value that a message quotes

_WRITE_HINT = "write one JSON object a line, as json.dumps(row) does, with nothing before or after it"
_SIGNATURES = (  # longer ones first: UTF-32 little-endian begins as UTF-16 does
    (b"\xff\xfe\x00\x00", "UTF-32 text", "save it as UTF-8"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "save it as UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    (b"{\x00", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16LE -t UTF-8"),
    (b"\x00{", "UTF-16 text", "save it as UTF-8: iconv -f UTF-16BE -t UTF-8"),
    (b"\x1f\x8b", "compressed with gzip", "decompress it first: gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first: zstd -d"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
)


class Unreadable(Exception):
    """The line is not one JSON object; carries the issue that says why."""

    def __init__(self, issue: Issue) -> None:
        super().__init__(issue.message)
        self.issue = issue


class _NotPlain(Exception):
    """The line has something that not every decoder accepts."""


class _RepeatedKey(dict[str, Any]):
    """An object in which a key stood twice; ``key`` names it."""

    key: str = ""


def find_file_problem(head: bytes) -> Issue | None:
    """Say what is wrong with a file as a whole, from its first bytes."""
    if head.startswith(b"PAR1"):
        return Issue(
            1,
            "$",
            "unsupported_format",
            "the file is parquet, which this server does not train yet; expected JSONL",
            "convert it to JSONL with rows of messages, prompt and completion, or text",
        )
    for signature, name, hint in _SIGNATURES:
        if head.startswith(signature):
            return Issue(1, "$", "not_utf8", f"the file is {name}; expected JSONL in UTF-8", hint)
    if head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"["):
        return Issue(
            1,
            "$",
            "json_array",
            "the file is a JSON array; expected JSONL, one object a line",
            "convert it: jq -c '.[]' data.json > data.jsonl",
        )
    return None


def is_blank(line: bytes) -> bool:
    """Whether the line holds no row at all."""
    return not line.strip(b" \t\r")


def parse(line: bytes, number: int, offset: int) -> dict[str, Any]:
    """Return the object on a line that starts at byte ``offset`` of its file. Raises Unreadable."""
    try:
        value = _decode(_read_text(line, number, offset), number)
    except RecursionError:
        raise Unreadable(_too_deep(number, "$")) from None
    except MemoryError:
        if len(line) < LARGE_ROW_BYTES:  # it is not this row that needs the memory
            raise
        raise Unreadable(
            Issue(
                number,
                "$",
                "row_too_large",
                f"the row needs more memory than a check may use: {len(line)} bytes of JSON",
                "split the row into several",
            )
        ) from None
    if not isinstance(value, dict):
        raise Unreadable(
            Issue(number, "$", "not_an_object", f"expected a JSON object, found {describe(value)}", _WRITE_HINT)
        )
    return value


def _read_text(line: bytes, number: int, offset: int) -> str:
    if len(line) > lines.MAX_LINE_BYTES:
        message = f"the line is longer than {lines.MAX_LINE_BYTES} bytes"
        hint = "split the row into several; one row is cut at the model's context anyway"
        raise Unreadable(Issue(number, "$", "line_too_long", message, hint))
    if (at := line.find(b"\0")) >= 0:
        message = f"NUL byte at byte offset {offset + at} of the file; text has none"
        raise Unreadable(Issue(number, "$", "nul_byte", message, "write the file again; it was damaged or is binary"))
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        message = f"not UTF-8: byte 0x{line[error.start]:02x} at byte offset {offset + error.start} of the file"
        hint = "save the file as UTF-8: iconv -f WINDOWS-1252 -t UTF-8"
        raise Unreadable(Issue(number, "$", "not_utf8", message, hint)) from None


def _decode(text: str, number: int) -> Any:
    try:
        try:
            value = _strict_decoder.decode(text)
            is_plain = text.count("{") + text.count("[") <= MAX_DEPTH and not _SURROGATE.search(text)
        except _NotPlain:
            value, is_plain = _decoder.decode(text), False
    except json.JSONDecodeError as error:
        what = error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
        message = f"not JSON: {what}, at column {error.colno}"
        raise Unreadable(Issue(number, "$", "invalid_json", message, _hint_for(text))) from None
    except ValueError:  # an integer of thousands of digits, which Python declines to read
        message = "not a usable number: an integer with thousands of digits"
        raise Unreadable(Issue(number, "$", "invalid_json", message, "write it as a string")) from None
    if not is_plain:
        _require_plain(value, number, [])
    return value


def _hint_for(text: str) -> str:
    if text.strip() in {"{", "}", "[", "]", "},"}:
        return "the JSON is spread over several lines; write each row on a line of its own: jq -c ."
    if text.lstrip().startswith("{'"):
        return "JSON wants double quotes; write rows with json.dumps(row), not str(row)"
    return _WRITE_HINT


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    keys = [key for key, _ in pairs]
    repeated = _RepeatedKey(made)
    repeated.key = next(key for index, key in enumerate(keys) if key in keys[:index])
    return repeated


def _make_strict_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _NotPlain
    return made


def _refuse_constant(_: str) -> float:
    raise _NotPlain


def _parse_finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _NotPlain
    return value


# Most lines need one look: the strict decoder gives up at what the other one, and a walk, then find the place of.
_strict_decoder = json.JSONDecoder(
    object_pairs_hook=_make_strict_object, parse_constant=_refuse_constant, parse_float=_parse_finite
)
_decoder = json.JSONDecoder(object_pairs_hook=_make_object)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _require_plain(value: Any, number: int, path: list[str | int]) -> None:
    """Raise Unreadable for what JSON decoders let pass and nothing after them can use. ``path`` leads to ``value``."""
    if isinstance(value, str):
        _require_text(value, number, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            message = "NaN and infinite numbers are not JSON"
            raise Unreadable(Issue(number, join_path(path), "not_finite", message, "use a finite number or null"))
    elif isinstance(value, (dict, list)):
        if len(path) >= MAX_DEPTH:
            raise Unreadable(_too_deep(number, join_path(path[:8]) + "…"))
        if isinstance(value, _RepeatedKey):
            where = join_path([*path, value.key])
            message = f"the key {quote(value.key)} stands twice in one object"
            raise Unreadable(Issue(number, where, "repeated_key", message, "keep one of the two"))
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in entries:
            path.append(key)
            if isinstance(key, str):
                _require_text(key, number, path)
            _require_plain(item, number, path)
            path.pop()


def _require_text(text: str, number: int, path: list[str | int]) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"half of a surrogate pair, \\u{ord(text[error.start]):04x}, is not a character"
        hint = "write characters beyond the basic plane as a whole pair, or as UTF-8"
        raise Unreadable(Issue(number, join_path(path), "lone_surrogate", message, hint)) from None


def _too_deep(number: int, path: str) -> Issue:
    message = f"nested deeper than {MAX_DEPTH} levels"
    return Issue(number, path, "too_deep", message, "flatten the row")


def join_path(path: list[str | int]) -> str:
    """Return a JSON path: ``["messages", 1, "odd key"]`` → ``$.messages[1]["odd key"]``."""
    text = "$"
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and len(part) <= SHOWN_CHARACTERS:
            text += f".{part}"
        else:
            text += f"[{quote(part)}]"
    return text


def quote(text: str) -> str:
    """Quote a piece of the user's text for a message: short, on one line, nothing that a terminal would obey."""
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    return json.dumps(shown, ensure_ascii=not shown.isprintable())


def describe(value: Any) -> str:
    """Name a JSON value for a message: its kind, and its text where that is short."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            text = str(value) if abs(value) < 10**SHOWN_CHARACTERS else f"{str(value)[:SHOWN_CHARACTERS]}…"
            return f"the number {text}"
        case str():
            return f"the string {quote(value)}" if value else "an empty string"
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case _:
            return "an object"

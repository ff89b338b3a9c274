"""The rules for rows: the fast path never differs from the exact one, and what passes the check is tokenised."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luthier.datasets import check, fast, formats, tokenise
from luthier.errors import InvalidRequest

KEYS = ["messages", "prompt", "completion", "text", "weight", "tools", "role", "content", "id", "preferred_output"]
ROLES = ["system", "user", "assistant", "tool", "human", ""]
TEXTS = st.one_of(
    st.text(max_size=8), st.sampled_from(['"role"', '"content":', "\\", '{"text": "a"}', "\u0000", "é\U0001f600"])
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.floats(), TEXTS)
MESSAGES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(ROLES[:3]), "content": TEXTS}),
        st.fixed_dictionaries(
            {"role": st.sampled_from(ROLES), "content": SCALARS},
            optional={"weight": SCALARS, "name": SCALARS, "tool_call_id": SCALARS, "reasoning": SCALARS},
        ),
        SCALARS,
    ),
    max_size=5,
)
ROWS = st.one_of(
    st.fixed_dictionaries({"messages": MESSAGES}),
    st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS}),
    st.fixed_dictionaries({"text": TEXTS}),
    st.dictionaries(st.sampled_from(KEYS), st.one_of(SCALARS, MESSAGES), max_size=4),
    SCALARS,
)


@st.composite
def spellings(draw, value):
    """Spell a JSON value as bytes in one of the many ways that JSON and its abuses allow."""
    if isinstance(value, dict):
        items = list(value.items())
        if items and draw(st.integers(0, 9)) == 0:
            items.append((draw(st.sampled_from(items))[0], draw(st.one_of(SCALARS, st.just([])))))
            items = draw(st.permutations(items))
        body = b",".join([draw(spellings(key)) + draw(SPACE) + b":" + draw(spellings(item)) for key, item in items])
        return b"{" + draw(SPACE) + body + b"}"
    if isinstance(value, list):
        return b"[" + draw(SPACE) + b",".join([draw(spellings(item)) for item in value]) + b"]"
    if isinstance(value, str) and value and draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(value) - 1))
        escaped = f"\\u{ord(value[at]):04x}" if ord(value[at]) < 0x10000 else value[at]
        return (
            b'"' + json.dumps(value[:at])[1:-1].encode() + escaped.encode() + json.dumps(value[at + 1 :])[1:].encode()
        )
    return draw(SPACE) + json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


SPACE = st.sampled_from([b"", b"", b" ", b"\t", b"\r"])
LINES = st.one_of(ROWS.flatmap(spellings), st.binary(max_size=20))


@st.composite
def damaged(draw):
    """A line in which a few bytes are changed, taken out or put in."""
    line = bytearray(draw(LINES))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(line)))
        line[at : at + draw(st.integers(0, 3))] = draw(
            st.sampled_from(
                [b"", b"\0", b'"', b"\\", b"}", b"[", b",", b"\xff", b"\xed\xa0\x80", b"NaN", b"\\ud800", b"1"]
            )
        )
    return bytes(line).replace(b"\n", b"")


@given(damaged())
@example(b'{"messages":[],"messages":[{"role":"assistant","content":"a"}]}')
@example(b'{"messages":[{"role":"user","r\\u006fle":"assistant","content":"a"}]}')
@example(b'{"text":"a","t\\u0065xt":"b"}')
@example(b'{"text":"a","\\u0074ext":"b"}')
@example(b'{"prompt":"a","completion":"b","prompt":"c"}')
@example(b'{"text":"a","text":"\\u0022\\u0022\\u0022\\u0022"}')
@example(b'{"text":"\\"","text":"b"}')
@example(b'{"messages":[{"role":"assistant","content":"a","content":"b"}]}')
def test_fast_path_when_it_takes_a_line_agrees_with_the_rules(line):
    clean_format = fast.find_clean_format(line)
    if clean_format is not None:
        checked = formats.check_line(line, 1, 0)
        assert (checked.errors, checked.warnings, checked.features) == ([], [], set())
        assert checked.format == clean_format
        assert checked.row is not None


@given(damaged())
def test_any_line_when_checked_gives_a_row_or_errors_that_can_be_shown(line):
    checked = formats.check_line(line, 3, 0)
    trained = checked.format in formats.TRAINED_FORMATS
    assert (checked.row is not None) == (trained and not checked.errors)
    for issue in [*checked.errors, *checked.warnings]:
        assert issue.line == 3
        assert issue.hint
        assert f"{issue.path} {issue.message} {issue.hint}".isprintable()
        assert len(issue.path) + len(issue.message) < 1000


@given(st.lists(damaged(), max_size=6), st.sampled_from([b"\n", b"\r\n"]))
def test_file_when_it_passes_the_check_is_read_whole_for_tokenising(file_lines, line_end):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.jsonl"
        path.write_bytes(line_end.join(file_lines))
        report = check.check_file(path)
        assert report.valid == (report.error_count == 0)
        assert (report.error_count > 0) == bool(report.errors)
        if report.valid:
            assert len(list(tokenise.read_rows(path))) == report.nlines
        elif {issue.code for issue in report.errors} - {"empty_file", "no_rows"}:
            with pytest.raises(InvalidRequest):
                list(tokenise.read_rows(path))

"""Each thing that can be wrong with a row has its own code, its place and a way out."""

from __future__ import annotations

import json

import pytest

from luthier.datasets import fast, formats, lines, parsing

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def call(arguments='{"a": 1}', name="f"):
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def chat(*messages, **keys):
    return {"messages": list(messages), **keys}


def check(row):
    line = row if isinstance(row, bytes) else json.dumps(row).encode()
    return formats.check_line(line, 7, 100)


GOOD_ROWS = [
    ({"text": "a"}, "general"),
    ({"prompt": "a", "completion": "b"}, "instruction"),
    (chat(USER, ASSISTANT), "conversation"),
    (chat(ASSISTANT, USER), "conversation"),
    (chat({"role": "system", "content": "s"}, USER, ASSISTANT), "conversation"),
    (chat(USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}), "conversation"),
    (chat({**USER, "weight": 0}, ASSISTANT), "conversation"),
    (chat(USER, {**ASSISTANT, "reasoning": "r"}), "conversation"),
    (chat(USER, {"role": "assistant", "content": None, "tool_calls": [call()]}), "conversation"),
    (chat(USER, {"role": "assistant", "content": "", "tool_calls": [call({"a": 1})]}), "conversation"),
    (
        chat(
            USER,
            {"role": "assistant", "tool_calls": [call(), call()]},
            {"role": "tool", "content": "", "tool_call_id": "1"},
            {"role": "tool", "content": "x", "tool_call_id": "2"},
            ASSISTANT,
            tools=[FUNCTION],
        ),
        "conversation",
    ),
    ({"text": "a", "weight": 1}, "general"),
    ({"text": "a", "weight": 0.0}, "general"),
    ({"text": "a", "messages": None, "tools": None, "id": None}, "general"),
]

BAD_ROWS = [
    # one line as bytes
    (b'{"text": "a"', "$", "invalid_json", "column 13"),
    (b"{'text': 'a'}", "$", "invalid_json", "double quotes"),
    (b'{"text": "a"} {"text": "b"}', "$", "invalid_json", "extra data"),
    (b"{", "$", "invalid_json", "property name"),
    (b'{"text": "a\tb"}', "$", "invalid_json", "control character"),
    (b'{"text": "a", "x": ' + b"9" * 5000 + b"}", "$", "invalid_json", "digits"),
    (b'{"text": "a\x00"}', "$", "nul_byte", "byte offset 111"),
    (b'{"text": "\xe9"}', "$", "not_utf8", "0xe9 at byte offset 110"),
    (b"\xff\xfe{\x00", "$", "nul_byte", "NUL"),
    (b'{"text": "\\ud800"}', "$.text", "lone_surrogate", "ud800"),
    (b'{"\\udc00": 1, "text": "a"}', '$["\\udc00"]', "lone_surrogate", "udc00"),
    (b'{"text": "a", "text": "b"}', "$.text", "repeated_key", "text"),
    (b'{"messages": [{"role": "user", "r\\u006fle": "a"}]}', "$.messages[0].role", "repeated_key", "role"),
    (b'{"text": "a", "weight": NaN}', "$.weight", "not_finite", "NaN"),
    (b'{"text": "a", "x": [1, -Infinity]}', "$.x[1]", "not_finite", "infinite"),
    (b'{"text": "a", "x": 1e999}', "$.x", "not_finite", "infinite"),
    (b'{"text": "a", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "$", "too_deep", "64"),
    (b'{"text": "a", "x": ' + b"[" * 64 + b"]" * 64 + b"}", "$.x[0][0][0][0][0][0][0]…", "too_deep", "64"),
    (b'{"text": "' + b"a" * lines.MAX_LINE_BYTES + b'"}', "$", "line_too_long", "longer"),
    (b"3", "$", "not_an_object", "the number 3"),
    (b"[]", "$", "not_an_object", "an empty list"),
    (b'"text"', "$", "not_an_object", 'the string "text"'),
    (b"null", "$", "not_an_object", "null"),
    # the row
    ({}, "$", "unknown_format", "none"),
    ({"question": "a", "messages": None}, "$", "unknown_format", '"question", "messages" (null)'),
    ({"text": "a", "prompt": "b"}, "$", "several_formats", "prompt + completion and text"),
    ({"prompt": "a"}, "$.completion", "missing_key", "completion"),
    ({"completion": "a", "prompt": None}, "$.prompt", "missing_key", "prompt"),
    ({"text": 5}, "$.text", "wrong_type", "the number 5"),
    ({"text": ["a"]}, "$.text", "wrong_type", "a list of 1"),
    ({"text": ""}, "$.text", "empty_text", "empty"),
    ({"prompt": "", "completion": "a"}, "$.prompt", "empty_text", "empty"),
    ({"text": "a", "weight": 0.5}, "$.weight", "unsupported_weight", "0.5"),
    ({"text": "a", "weight": -1}, "$.weight", "invalid_weight", "-1"),
    ({"text": "a", "weight": "1"}, "$.weight", "invalid_weight", '"1"'),
    ({"text": "a", "weight": True}, "$.weight", "invalid_weight", "true"),
    # the messages
    ({"messages": "a"}, "$.messages", "wrong_type", 'the string "a"'),
    ({"messages": []}, "$.messages", "wrong_type", "an empty list"),
    ({"messages": {}}, "$.messages", "wrong_type", "an object"),
    (chat(USER, "a"), "$.messages[1]", "wrong_type", 'the string "a"'),
    (chat({"content": "a"}, ASSISTANT), "$.messages[0].role", "missing_key", "no role"),
    (chat({"role": "human", "content": "a"}, ASSISTANT), "$.messages[0].role", "unknown_role", '"human"'),
    (chat({"role": ["user"], "content": "a"}, ASSISTANT), "$.messages[0].role", "unknown_role", "a list of 1"),
    (chat({"role": "user"}, ASSISTANT), "$.messages[0].content", "missing_key", "no content"),
    (chat(USER, {"role": "assistant", "content": None}), "$.messages[1].content", "missing_key", "null"),
    (chat({"role": "user", "content": ""}, ASSISTANT), "$.messages[0].content", "empty_text", "empty"),
    (chat(USER, {"role": "assistant", "content": ""}), "$.messages[1].content", "empty_text", "empty"),
    (chat({"role": "user", "content": {"a": 1}}, ASSISTANT), "$.messages[0].content", "wrong_type", "an object"),
    (
        chat({"role": "user", "content": [{"type": "text", "text": "a"}]}, ASSISTANT),
        "$.messages[0].content",
        "wrong_type",
        "list",
    ),
    (
        chat({"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT),
        "$.messages[0].content",
        "unsupported_format",
        "image_url",
    ),
    (chat(USER), "$.messages", "no_assistant", "no assistant"),
    (chat(USER, {"role": "system", "content": "s"}, ASSISTANT), "$.messages[1].role", "system_not_first", "number 2"),
    (chat(USER, {**ASSISTANT, "weight": 2}), "$.messages[1].weight", "invalid_weight", "the number 2"),
    (chat(USER, {**ASSISTANT, "weight": True}), "$.messages[1].weight", "invalid_weight", "true"),
    (chat(USER, {**ASSISTANT, "reasoning": 1}), "$.messages[1].reasoning", "wrong_type", "the number 1"),
    (chat(USER, {**ASSISTANT, "reasoning": "a", "reasoning_content": "b"}), "$.messages[1]", "two_reasonings", "both"),
    # tools
    (chat(USER, ASSISTANT, tools=[]), "$.tools", "wrong_type", "an empty list"),
    (chat(USER, ASSISTANT, tools=["f"]), "$.tools[0]", "wrong_type", '"f"'),
    (chat(USER, ASSISTANT, tools=[{"type": "web"}]), "$.tools[0]", "wrong_type", "an object"),
    (chat(USER, ASSISTANT, tools=[{"function": {"name": ""}}]), "$.tools[0].function.name", "wrong_type", "empty"),
    (chat(USER, {"role": "assistant", "tool_calls": {}}), "$.messages[1].tool_calls", "wrong_type", "an object"),
    (
        chat(USER, {"role": "assistant", "tool_calls": [call("[1]")]}),
        "$.messages[1].tool_calls[0].function.arguments",
        "tool_arguments",
        "a list",
    ),
    (
        chat(USER, {"role": "assistant", "tool_calls": [call("{")]}),
        "$.messages[1].tool_calls[0].function.arguments",
        "tool_arguments",
        "not JSON",
    ),
    (
        chat(USER, {"role": "assistant", "tool_calls": [call(3)]}),
        "$.messages[1].tool_calls[0].function.arguments",
        "tool_arguments",
        "the number 3",
    ),
    (chat(USER, {"role": "tool", "content": "a"}, ASSISTANT), "$.messages[1].tool_call_id", "tool_call_id", "none"),
]


@pytest.mark.parametrize(("row", "expected"), GOOD_ROWS)
def test_good_row_when_checked_has_its_format_and_no_issue(row, expected):
    found = check(row)
    assert (found.format, found.errors, found.warnings) == (expected, [], [])
    assert found.row is not None


@pytest.mark.parametrize(("row", "path", "code", "says"), BAD_ROWS)
def test_bad_row_when_checked_names_place_code_and_way_out(row, path, code, says):
    found = check(row)
    assert found.row is None
    [issue] = found.errors
    assert (issue.line, issue.path, issue.code) == (7, path, code)
    assert issue.hint
    assert says in issue.message or says in issue.hint
    assert len(issue.message) < 300
    assert f"{issue.path}{issue.message}{issue.hint}".isprintable()


@pytest.mark.parametrize(
    ("row", "path", "code"),
    [
        ({"text": "a", "id": 1}, "$.id", "unknown_key"),
        ({"text": "a", "odd key": 1}, '$["odd key"]', "unknown_key"),
        (chat({**USER, "name": "Bo"}, ASSISTANT), "$.messages[0].name", "unknown_key"),
        (chat({**USER, "tool_calls": [call()]}, ASSISTANT), "$.messages[0].tool_calls", "unknown_key"),
        (chat(USER, USER, ASSISTANT), "$.messages[1].role", "same_role_twice"),
        (chat(USER, ASSISTANT, ASSISTANT), "$.messages[2].role", "same_role_twice"),
        (chat({**USER, "weight": 1}, ASSISTANT), "$.messages[0].weight", "weight_on_input"),
        (parsing.BYTE_ORDER_MARK + b'{"text": "a"}', "$", "byte_order_mark"),
    ],
)
def test_row_when_only_unusual_is_good_with_a_warning(row, path, code):
    found = check(row)
    assert found.errors == []
    assert found.row is not None
    assert [(issue.path, issue.code) for issue in found.warnings] == [(path, code)]


def test_row_when_it_has_several_errors_tells_all():
    found = check(chat({"role": "user", "content": 1}, {"role": "assistant", "content": "", "weight": 3}))
    assert [issue.path for issue in found.errors] == [
        "$.messages[0].content",
        "$.messages[1].content",
        "$.messages[1].weight",
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat(USER, {**ASSISTANT, "weight": 1}), {"message_weights"}),
        ({"text": "a", "weight": 1}, {"sample_weights"}),
        (chat(USER, ASSISTANT, tools=[FUNCTION]), {"tools"}),
        (chat(USER, {**ASSISTANT, "tool_calls": [call(), call()]}), {"tools", "parallel_tool_calls"}),
        (chat(USER, {**ASSISTANT, "reasoning_content": "r"}), {"reasoning"}),
    ],
)
def test_row_when_it_uses_a_feature_says_so(row, expected):
    assert check(row).features == expected


@pytest.mark.parametrize(
    ("row", "expected"), [({"preferred_output": [], "input": {}}, "preference"), ({"input_ids": [1]}, "tokenized")]
)
def test_row_when_its_format_is_not_trained_is_recognised(row, expected):
    found = check(row)
    assert (found.format, found.row, found.errors) == (expected, None, [])


def test_row_when_keys_are_unknown_is_passed_on_without_them():
    row = check(chat({**USER, "name": "Bo"}, {**ASSISTANT, "refusal": None}, extra=1)).row
    assert row == formats.Conversation([USER, ASSISTANT], None, 1)


def test_message_when_a_value_is_long_is_quoted_short():
    [issue] = check({"text": {"a": 1}, "messages": None}).errors
    assert issue.message == "expected a string, found an object"
    [issue] = check(chat({"role": "x" * 10_000, "content": "a"}, ASSISTANT)).errors
    assert len(issue.message) < 200


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a"}, "general"),
        ({"prompt": "a", "completion": "b"}, "instruction"),
        (chat(USER, ASSISTANT), "conversation"),
        (chat({"role": "system", "content": "s"}, USER, ASSISTANT, USER), "conversation"),
        (chat(USER, {"role": "assistant", "content": '"role": é \\ \n {"content": 1}'}), "conversation"),
    ],
)
def test_fast_path_when_a_row_is_common_takes_it(row, expected):
    for ensure_ascii in (True, False):
        assert fast.find_clean_format(json.dumps(row, ensure_ascii=ensure_ascii).encode()) == expected


@pytest.mark.parametrize(("row", "path", "code", "says"), BAD_ROWS)
def test_fast_path_when_a_row_is_bad_leaves_it(row, path, code, says):
    assert fast.find_clean_format(row if isinstance(row, bytes) else json.dumps(row).encode()) is None

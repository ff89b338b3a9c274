"""The rules for a row: one place, used when a file is checked and again when it is tokenised.

Three formats are trained: ``messages`` (with ``tools``), ``prompt`` + ``completion``, and ``text``. Keys that no
format knows are warnings; what is known but could not be honoured by the training is an error, never ignored.
A key whose value is null counts as absent.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from luthier.datasets import parsing
from luthier.datasets.parsing import Unreadable, describe, quote
from luthier.datasets.report import DatasetFormat, Issue

RowFormat = Literal["conversation", "instruction", "general", "preference", "tokenized"]
Feature = Literal["message_weights", "sample_weights", "tools", "reasoning", "parallel_tool_calls"]

TRAINED_FORMATS: tuple[DatasetFormat, ...] = ("conversation", "instruction", "general")
_FORMAT_KEYS: dict[RowFormat, tuple[str, ...]] = {
    "conversation": ("messages",),
    "instruction": ("prompt", "completion"),
    "general": ("text",),
    "preference": ("preferred_output", "non_preferred_output"),
    "tokenized": ("input_ids",),
}
_TRAINED_TEXT = "; ".join(f"{name} ({', '.join(_FORMAT_KEYS[name])})" for name in TRAINED_FORMATS)
_OPTIONAL_KEYS: dict[RowFormat, frozenset[str]] = {
    "conversation": frozenset({"tools", "weight"}),
    "instruction": frozenset({"weight"}),
    "general": frozenset({"weight"}),
}
_ROLES = ("system", "user", "assistant", "tool")
_ROLE_KEYS = {
    "system": frozenset({"role", "content", "weight"}),
    "user": frozenset({"role", "content", "weight"}),
    "assistant": frozenset({"role", "content", "weight", "tool_calls", "reasoning", "reasoning_content"}),
    "tool": frozenset({"role", "content", "weight", "tool_call_id"}),
}
_OTHER_NAMES = {  # what other tools call the roles
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "developer": "system",
    "function": "tool",
}


class Conversation(msgspec.Struct, frozen=True):
    """A row of messages, as in the file but for nulls and unknown keys. ``weight`` 0: nothing in it is trained."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    weight: int


class Instruction(msgspec.Struct, frozen=True):
    """A row of prompt and completion."""

    prompt: str
    completion: str
    weight: int


class Text(msgspec.Struct, frozen=True):
    """A row of plain text."""

    text: str
    weight: int


Row = Conversation | Instruction | Text


class RowCheck(msgspec.Struct):
    """What one line holds. ``row`` is there exactly when there are no errors and the format is one that is trained."""

    line: int
    is_blank: bool = False
    format: RowFormat | None = None
    row: Row | None = None
    errors: list[Issue] = []
    warnings: list[Issue] = []
    features: set[Feature] = set()

    def fail(self, path: str, code: str, message: str, hint: str) -> None:
        """Note an error."""
        self.errors.append(Issue(self.line, path, code, message, hint))

    def warn(self, path: str, code: str, message: str, hint: str) -> None:
        """Note a warning."""
        self.warnings.append(Issue(self.line, path, code, message, hint))


def check_line(line: bytes, number: int, offset: int) -> RowCheck:
    """Check line ``number`` (from 1), which starts at byte ``offset`` of its file. Never raises for bad data."""
    check = RowCheck(number)
    if line.startswith(parsing.BYTE_ORDER_MARK):
        line = line.removeprefix(parsing.BYTE_ORDER_MARK)
        offset += len(parsing.BYTE_ORDER_MARK)
        check.warn("$", "byte_order_mark", "the line starts with a byte order mark", "save as UTF-8 without BOM")
    if parsing.is_blank(line):
        check.is_blank = True
        check.warn("$", "blank_line", "the line is blank and is skipped", "remove it")
        return check
    try:
        values = parsing.parse(line, number, offset)
    except Unreadable as error:
        check.errors.append(error.issue)
        return check
    _check_row(values, check)
    return check


def refuse_format(row_format: RowFormat, line: int) -> Issue:
    """Return the error for a file in a format that is known but not trained."""
    keys = ", ".join(_FORMAT_KEYS[row_format])
    message = f"the format {row_format} ({keys}) is not trained by this server yet"
    return Issue(line, "$", "unsupported_format", message, f"use one of: {_TRAINED_TEXT}")


def refuse_mix(row_format: RowFormat, line: int, file_format: RowFormat, began: int) -> Issue:
    """Return the error for a row in another format than the file's, which began at line ``began``."""
    message = f"the row's format is {row_format}, but the file began with {file_format} at line {began}"
    return Issue(line, "$", "mixed_formats", message, "keep one format a file: make two files of it")


def _check_row(item: dict[str, Any], check: RowCheck) -> None:
    check.format = _find_format(item, check)
    if check.format is None or check.format not in TRAINED_FORMATS:
        return
    values = _drop_nulls(item)
    _warn_unknown(values, frozenset(_FORMAT_KEYS[check.format]) | _OPTIONAL_KEYS[check.format], "$", check)
    weight = _check_row_weight(values, check)
    row: Row | None = None
    if check.format == "conversation":
        row = _check_conversation(values, weight, check)
    elif check.format == "instruction":
        prompt, completion = (_check_text(values, key, check) for key in ("prompt", "completion"))
        row = Instruction(prompt, completion, weight)
    else:
        row = Text(_check_text(values, "text", check), weight)
    if not check.errors:
        check.row = row


def _find_format(item: dict[str, Any], check: RowCheck) -> RowFormat | None:
    found = [name for name, keys in _FORMAT_KEYS.items() if any(item.get(key) is not None for key in keys)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(" + ".join(_FORMAT_KEYS[name]) for name in found)
        check.fail("$", "several_formats", f"the row has several formats at once: {names}", "keep one of them")
        return None
    keys = ", ".join(quote(key) + (" (null)" if item[key] is None else "") for key in list(item)[:8]) or "none"
    hint = "give each row messages, or prompt and completion, or text"
    check.fail("$", "unknown_format", f"no known format; the row's keys are: {keys}", hint)
    return None


def _warn_unknown(values: dict[str, Any], known: frozenset[str], path: str, check: RowCheck) -> None:
    for key in values:
        if key in known:
            continue
        where = path + parsing.join_path([key])[1:]
        check.warn(where, "unknown_key", f"the key {quote(key)} is not used in training", "remove it, or ignore this")


def _check_text(values: dict[str, Any], key: str, check: RowCheck) -> str:
    value = values.get(key)
    if key not in values:
        check.fail(f"$.{key}", "missing_key", f"the key {quote(key)} is missing or null", f"add {key}: a string")
    elif not isinstance(value, str):
        check.fail(f"$.{key}", "wrong_type", f"expected a string, found {describe(value)}", f"make {key} a string")
    elif not value:
        check.fail(f"$.{key}", "empty_text", "expected text, found an empty string", "fill it, or remove the row")
    else:
        return value
    return ""


def _check_row_weight(values: dict[str, Any], check: RowCheck) -> int:
    """Weight 0 drops the row, 1 is the default. Others would scale the loss, which the training does not do."""
    value = values.get("weight", 1)
    if "weight" in values:
        check.features.add("sample_weights")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        message = f"expected a row weight of 0 or 1, found {describe(value)}"
        check.fail("$.weight", "invalid_weight", message, "give 0 or 1, or remove it")
    elif value not in {0, 1}:
        message = f"row weights other than 0 and 1 are not trained by this server: {value}"
        check.fail("$.weight", "unsupported_weight", message, "remove weight, or repeat rows that should count more")
    else:
        return int(value)
    return 1


def _check_conversation(values: dict[str, Any], weight: int, check: RowCheck) -> Conversation:
    tools = _check_tools(values["tools"], check) if "tools" in values else None
    messages = values["messages"]
    if not isinstance(messages, list) or not messages:
        message = f"expected a list of messages, found {describe(messages)}"
        check.fail("$.messages", "wrong_type", message, 'give a list of {"role": …, "content": …}')
        return Conversation([], None, weight)
    checked = [_check_message(item, index, check) for index, item in enumerate(messages)]
    roles = [message.get("role") for message in checked]
    _check_order(roles, check)
    if "assistant" not in roles and not check.errors:
        hint = 'add a message with role "assistant": it is what the model learns'
        check.fail("$.messages", "no_assistant", "the conversation has no assistant message", hint)
    return Conversation(checked, tools, weight)


def _check_order(roles: list[Any], check: RowCheck) -> None:
    for index in range(1, len(roles)):
        role, path = roles[index], f"$.messages[{index}].role"
        if role == "system":
            hint = "move it to the front, or join it with the first one"
            check.fail(
                path, "system_not_first", f"a system message may only be the first, this is number {index + 1}", hint
            )
        elif role == roles[index - 1] and role in {"user", "assistant"}:
            hint = "join the two messages if one was meant"
            check.warn(path, "same_role_twice", f"two {role} messages in a row", hint)


def _check_message(item: Any, index: int, check: RowCheck) -> dict[str, Any]:
    path = f"$.messages[{index}]"
    if not isinstance(item, dict):
        hint = 'give {"role": …, "content": …}'
        check.fail(path, "wrong_type", f"expected a message object, found {describe(item)}", hint)
        return {}
    values = _drop_nulls(item)
    role = values.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        _fail_role(role, path, check)
        return {}
    _warn_unknown(values, _ROLE_KEYS[role], path, check)
    _check_content(values, role, path, check)
    _check_message_weight(values, role, path, check)
    if role == "assistant":
        _check_reasoning(values, path, check)
        _check_tool_calls(values, path, check)
    elif role == "tool" and not (isinstance(values.get("tool_call_id"), str) and values["tool_call_id"]):
        found = describe(values["tool_call_id"]) if "tool_call_id" in values else "none"
        hint = "give the id of the tool call that this answers"
        check.fail(
            f"{path}.tool_call_id", "tool_call_id", f"a tool message needs tool_call_id, a string, found {found}", hint
        )
    known = _ROLE_KEYS[role]
    return values if values.keys() <= known else {key: value for key, value in values.items() if key in known}


def _drop_nulls(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if value is not None} if None in item.values() else item


def _fail_role(role: Any, path: str, check: RowCheck) -> None:
    expected = ", ".join(_ROLES)
    if role is None:
        check.fail(f"{path}.role", "missing_key", "the message has no role", f"give one of: {expected}")
        return
    other = _OTHER_NAMES.get(role.lower()) if isinstance(role, str) else None
    hint = f"write {quote(other)} instead" if other else f"use one of: {expected}"
    check.fail(f"{path}.role", "unknown_role", f"expected one of {expected}, found {describe(role)}", hint)


def _check_content(values: dict[str, Any], role: str, path: str, check: RowCheck) -> None:
    path += ".content"
    calls = role == "assistant" and "tool_calls" in values
    if "content" not in values:
        if not calls:
            hint = 'add "content": a string' + (", or tool_calls" if role == "assistant" else "")
            check.fail(path, "missing_key", "the message has no content, or null", hint)
        return
    content = values["content"]
    if isinstance(content, list):
        _fail_parts(content, path, check)
    elif not isinstance(content, str):
        check.fail(path, "wrong_type", f"expected a string, found {describe(content)}", "make content a string")
    elif not content and not calls and role != "tool":  # a tool may well have returned nothing
        check.fail(path, "empty_text", "expected text, found an empty string", "fill it, or remove the message")


def _fail_parts(parts: list[Any], path: str, check: RowCheck) -> None:
    kinds = (part.get("type") for part in parts if isinstance(part, dict))
    other = next((kind for kind in kinds if isinstance(kind, str) and kind != "text"), None)
    if other is not None:
        message = f"content with parts of type {quote(other)} is not trained by this server yet"
        check.fail(path, "unsupported_format", message, "only text is trained: make content a string")
    else:
        hint = "join the text parts into one string"
        check.fail(path, "wrong_type", f"expected a string, found {describe(parts)}", hint)


def _check_message_weight(values: dict[str, Any], role: str, path: str, check: RowCheck) -> None:
    if "weight" not in values:
        return
    check.features.add("message_weights")
    weight = values["weight"]
    if isinstance(weight, bool) or weight not in (0, 1):
        message = f"expected a message weight of 0 or 1, found {describe(weight)}"
        check.fail(f"{path}.weight", "invalid_weight", message, "1 trains the message, 0 does not")
    elif weight == 1 and role != "assistant":
        message = f"weight 1 on a {role} message trains it only with train_on_inputs: true"
        check.warn(f"{path}.weight", "weight_on_input", message, "remove it, or set train_on_inputs")


def _check_reasoning(values: dict[str, Any], path: str, check: RowCheck) -> None:
    given = [key for key in ("reasoning", "reasoning_content") if key in values]
    for key in given:
        check.features.add("reasoning")
        if not isinstance(values[key], str):
            message = f"expected a string, found {describe(values[key])}"
            check.fail(f"{path}.{key}", "wrong_type", message, f"make {key} a string")
    if len(given) > 1:
        hint = "keep one of the two"
        check.fail(path, "two_reasonings", "the message has both reasoning and reasoning_content", hint)


def _check_tools(tools: Any, check: RowCheck) -> list[dict[str, Any]] | None:
    check.features.add("tools")
    hint = 'give a list of {"type": "function", "function": {"name": …, "parameters": …}}'
    if not isinstance(tools, list) or not tools:
        check.fail("$.tools", "wrong_type", f"expected a list of tools, found {describe(tools)}", hint)
        return None
    for index, tool in enumerate(tools):
        _check_function(tool, f"$.tools[{index}]", hint, check)
    return tools


def _check_tool_calls(values: dict[str, Any], path: str, check: RowCheck) -> None:
    if "tool_calls" not in values:
        return
    check.features.add("tools")
    calls, path = values["tool_calls"], f"{path}.tool_calls"
    hint = 'give a list of {"id": …, "type": "function", "function": {"name": …, "arguments": …}}'
    if not isinstance(calls, list) or not calls:
        check.fail(path, "wrong_type", f"expected a list of tool calls, found {describe(calls)}", hint)
        return
    if len(calls) > 1:
        check.features.add("parallel_tool_calls")
    for index, call in enumerate(calls):
        if _check_function(call, f"{path}[{index}]", hint, check):
            _check_arguments(call["function"], f"{path}[{index}].function.arguments", check)


def _check_function(item: Any, path: str, hint: str, check: RowCheck) -> bool:
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict) or item.get("type", "function") != "function":
        check.fail(path, "wrong_type", f"expected an object with type function, found {describe(item)}", hint)
    elif not isinstance(function.get("name"), str) or not function["name"]:
        found = describe(function.get("name"))
        check.fail(f"{path}.function.name", "wrong_type", f"expected a function's name, found {found}", hint)
    else:
        return True
    return False


def _check_arguments(function: dict[str, Any], path: str, check: RowCheck) -> None:
    """Arguments are a JSON object, or its text; text that is no object could not be shown to a template."""
    arguments = function.get("arguments", {})
    hint = "give a JSON object, or its text"
    if isinstance(arguments, str):
        try:
            parsing.parse(arguments.encode(), check.line, 0)
        except Unreadable as error:
            check.fail(path, "tool_arguments", f"arguments are not a JSON object: {error.issue.message}", hint)
    elif not isinstance(arguments, dict):
        check.fail(path, "tool_arguments", f"expected an object, found {describe(arguments)}", hint)

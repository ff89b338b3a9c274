"""Rows through the model's own chat template: the exact text, and which of its characters the loss counts.

The text is what transformers' ``apply_chat_template`` renders, byte for byte, with the same sandbox. Templates do
not say where an assistant's turn begins and ends, so each turn is found by rendering the conversation up to it:
what the model would be prompted with is the part before, what it should have said is the rest of the turn, through
the first token that ends it; where the message itself holds that token, or there is none, the turn ends where the
conversation through it does. Where a template refuses the part before, or writes it differently once others follow, a
mark in front of the content shows where that begins. To render each part of a conversation takes time by the square of
its messages: it is done for the turns that are not cut off only.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.datasets.formats import Conversation
from luthier.errors import InvalidRequest

TEMPLATE_FILE = "chat_template.jinja"
_TOKEN_NAMES = (  # that a template may use
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MARK = "\ue000"  # a private-use character, which is in no template
_NUMBERED_MARK = re.compile(f"{_MARK}([0-9]+){_MARK}")
_LONG_CHAT_MESSAGES = 64  # from here on it is worth the time to measure first how many of them are cut off
_TODAY = datetime(2024, 7, 26, tzinfo=UTC)  # what Llama 3.2's template takes where it is given no date

Span = tuple[int, int]
Message = dict[str, Any]


class Rendered(NamedTuple):
    """A text and the character ranges of it that are trained, in order. ``is_chat``: a template wrote it."""

    text: str
    trained: list[Span]
    is_chat: bool = True


class TemplateProblem(Exception):
    """The template cannot render these messages, or its turns cannot be told apart; says why."""


class _Generation(jinja2.ext.Extension):
    """Accepts ``{% generation %}`` blocks, which some templates have, and renders what is in them."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """``namespace`` without names that reach into Python."""

    def __init__(*args: Any, **attributes: Any) -> None:
        for name in attributes:
            _require_public(name)
        jinja2.utils.Namespace.__init__(*args, **attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"names with a leading underscore are not for templates: {name}")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates pass these by position
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - the same
) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplate:
    """One compiled template. The date that a template may ask for is always the same: equal inputs, equal tokens."""

    end_of_turn: str  # the token that closes an assistant's turn; empty when there is none

    def __init__(self, source: str, named_tokens: Mapping[str, str], special_tokens: Sequence[str]) -> None:
        """``named_tokens``: eos_token and the like, as a template sees them; ``special_tokens``: all there are."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["namespace"] = _Namespace
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _TODAY.strftime
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateProblem(f"the chat template does not compile: {error}") from error
        self._named_tokens = dict(named_tokens)
        self._special = tuple(filter(None, special_tokens))
        self.end_of_turn = self._find_end_of_turn()

    def render(
        self, messages: list[Message], tools: list[dict[str, Any]] | None = None, *, prompt: bool = False
    ) -> str:
        """Return the text of a conversation; ``prompt`` adds the header of the assistant's next turn.

        Raises TemplateProblem.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                **self._named_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise TemplateProblem(f"the chat template cannot render it: {error}") from error

    def apply(self, row: Conversation, *, train_on_inputs: bool, measure: Callable[[str], int]) -> Rendered:
        """Render a row and find what of it is trained: the assistant's turns, or everything; never weight 0.

        ``measure`` tells how many characters of a text are kept; turns behind them are not looked for. Raises
        TemplateProblem, also when the template leaves tools, tool calls or reasoning out.
        """
        messages = [prepare(message) for message in row.messages]
        text = self.render(messages, row.tools)
        self._require_all(messages, row.tools, text)
        turns = _Turns(self, messages, row.tools, text)
        if row.weight == 0:
            return Rendered(text, [])
        kept = measure(text) if len(messages) > _LONG_CHAT_MESSAGES else len(text)
        is_silent = [message.get("weight", 1) == 0 for message in row.messages]
        if train_on_inputs:
            holes = turns.find_all([index for index in range(len(messages)) if is_silent[index]], kept)
            return Rendered(text, _subtract((0, len(text)), holes))
        spoken = (index for index, message in enumerate(messages) if message["role"] == "assistant")
        return Rendered(text, turns.find_all([index for index in spoken if not is_silent[index]], kept))

    def _require_all(self, messages: list[Message], tools: list[dict[str, Any]] | None, text: str) -> None:
        """Raise TemplateProblem when the text is the same without a part of the row: it could not be learnt."""
        without: dict[str, tuple[list[Message], list[dict[str, Any]] | None]] = {}
        if tools:
            without["tools"] = (messages, None)
        if any("tool_calls" in message for message in messages):
            without["tool_calls"] = ([_drop(message, "tool_calls") for message in messages], tools)
        spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        # Of the turns before the last, templates drop the reasoning on purpose: at inference it is not there either.
        if spoken and messages[spoken[-1]].get("reasoning_content", "").strip():
            last = _drop(messages[spoken[-1]], "thinking", "reasoning", "reasoning_content")
            without["reasoning"] = ([*messages[: spoken[-1]], last, *messages[spoken[-1] + 1 :]], tools)
        for part, (other_messages, other_tools) in without.items():
            if self.try_render(other_messages, other_tools) == text:
                raise TemplateProblem(f"the chat template leaves {part} out")

    def try_render(
        self, messages: list[Message], tools: list[dict[str, Any]] | None, *, prompt: bool = False
    ) -> str | None:
        """Return what ``render`` does; None where it raises."""
        try:
            return self.render(messages, tools, prompt=prompt)
        except TemplateProblem:
            return None

    def cut_after_end_token(self, text: str) -> int:
        """Return where a turn ends: after the token that closes it, without the white space that some add."""
        stripped = text.rstrip()
        return len(stripped) if stripped.endswith(self._special) else len(text)

    def _find_end_of_turn(self) -> str:
        probe = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        after = (self.try_render(probe, None) or "").rpartition(_MARK)[2].strip()
        return next((token for token in self._special if after.startswith(token)), "")


class _Turns:
    """Finds the part of a rendered conversation that one message made."""

    def __init__(
        self, template: ChatTemplate, messages: list[Message], tools: list[dict[str, Any]] | None, text: str
    ) -> None:
        self._template = template
        self._messages = messages
        self._tools = tools
        self._text = text

    def find_all(self, indices: Iterable[int], kept: int) -> list[Span]:
        """Return the characters of these messages, as far as they begin in the first ``kept`` of the text.

        Of an assistant's, only what the model itself would write. Raises TemplateProblem.
        """
        spans: list[Span] = []
        for index in indices:
            spans.append(self._find(index, behind=spans[-1][1] if spans else 0))
            if spans[-1][0] >= kept:
                break
        return spans

    def _find(self, index: int, *, behind: int) -> Span:
        is_assistant = self._messages[index]["role"] == "assistant"
        start = self._find_start(index, is_assistant=is_assistant)
        if start is not None and start >= behind:
            end = self._find_end(index, start, is_assistant=is_assistant)
            if end is not None and end > start:
                return start, end
        raise TemplateProblem(f"in the text that the chat template makes, message {index} cannot be told apart")

    def _find_start(self, index: int, *, is_assistant: bool) -> int | None:
        if index == 0 and not is_assistant:
            return 0
        before = self._render_prefix(index, prompt=is_assistant)
        if before is not None:
            return len(before)
        return self._marked_starts.get(index) if is_assistant else None

    def _find_end(self, index: int, start: int, *, is_assistant: bool) -> int | None:
        is_last = index == len(self._messages) - 1
        # A call may end with a token of its own: the next end of a turn is then another message's, if there is one.
        if is_assistant and (is_last or "tool_calls" not in self._messages[index]):
            end = self._find_end_token(index, start)
            if end is not None:
                return end
        through = self._text if is_last else self._render_prefix(index + 1, prompt=False)
        if through is not None:
            return self._template.cut_after_end_token(through) if is_assistant else len(through)
        return self._find_end_token(index, start) if is_assistant else None

    def _find_end_token(self, index: int, start: int) -> int | None:
        """Find the end of the first end-of-turn token; None where there is none, or the message itself holds one."""
        token = self._template.end_of_turn
        if not token or token in json.dumps(self._messages[index], ensure_ascii=False):
            return None
        found = self._text.find(token, start)
        return found + len(token) if found >= 0 else None

    def _render_prefix(self, count: int, *, prompt: bool) -> str | None:
        """Render the first ``count`` messages; None when the whole text does not begin so."""
        # Some templates refuse an empty or an unfinished conversation.
        prefix = self._template.try_render(self._messages[:count], self._tools, prompt=prompt)
        return prefix if prefix is not None and self._text.startswith(prefix) else None

    @cached_property
    def _marked_starts(self) -> dict[int, int]:
        """Where the contents of assistant's messages begin, by marks in front of them that change nothing else."""
        if _MARK in self._text:
            return {}
        for prepare_content in (str, str.lstrip):  # templates may trim
            marked = [
                {**message, "content": f"{_MARK}{index}{_MARK}{prepare_content(message['content'])}"}
                if message["role"] == "assistant" and message["content"]
                else message
                for index, message in enumerate(self._messages)
            ]
            # Texts at even places, at odd ones the numbers of the messages that begin between them.
            parts = _NUMBERED_MARK.split(self._template.try_render(marked, self._tools) or "")
            texts, numbers = parts[::2], parts[1::2]
            if "".join(texts) == self._text and len(set(numbers)) == len(numbers):
                ends = itertools.accumulate(map(len, texts))
                return {int(number): end for number, end in zip(numbers, ends, strict=False)}
        return {}


def prepare(message: Message) -> Message:
    """Shape a message as templates expect it: arguments as objects, reasoning under its usual names, no weight.

    Content is always there: beside tool calls it may be missing in the row, and templates trip over that.
    """
    prepared = {"content": "", **message}
    prepared.pop("weight", None)
    reasoning = message.get("reasoning_content", message.get("reasoning"))
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    if "tool_calls" in message:
        prepared["tool_calls"] = [_prepare_call(call) for call in message["tool_calls"]]
    return prepared


def _drop(message: Message, *keys: str) -> Message:
    return {key: value for key, value in message.items() if key not in keys}


def _prepare_call(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"].get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _subtract(whole: Span, holes: list[Span]) -> list[Span]:
    spans, position = [], whole[0]
    for start, end in sorted(holes):
        if start > position:
            spans.append((position, start))
        position = max(position, end)
    if position < whole[1]:
        spans.append((position, whole[1]))
    return spans


def load_template(model_dir: Path, config: Mapping[str, Any], special_tokens: Sequence[str]) -> ChatTemplate | None:
    """Return the model's template, from its own file or from ``tokenizer_config.json`` (``config``); None: it has none.

    Raises InvalidRequest when it does not compile.
    """
    source = _find_source(model_dir, config)
    if source is None:
        return None
    try:
        return ChatTemplate(source, dict(_list_named_tokens(config)), special_tokens)
    except TemplateProblem as error:
        raise InvalidRequest("chat_template", str(error), hint="choose another base model") from error


def _find_source(model_dir: Path, config: Mapping[str, Any]) -> str | None:
    path = model_dir / TEMPLATE_FILE
    if path.exists():
        return path.read_text(encoding="utf-8")
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {item["name"]: item["template"] for item in source}.get("default")
    return source if isinstance(source, str) else None


def _list_named_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _TOKEN_NAMES:
        token = get_token_text(config.get(name))
        if token is not None:
            yield name, token


def get_token_text(value: Any) -> str | None:
    """Return a token from ``tokenizer_config.json``, where it is a string or an object with its content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None

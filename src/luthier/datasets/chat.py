"""Rows through the model's own chat template: the exact text, and which of its characters the loss counts.

The text is what transformers' ``apply_chat_template`` renders, byte for byte, with the same sandbox. Templates do
not say where an assistant's turn begins and ends, so each turn is found by rendering the conversation up to it:
what the model would be prompted with is the part before, what it should have said is the rest of the turn, through
the token that ends it. Where a template writes early turns differently once more follow, the content itself
is marked and found again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
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
_SPECIAL_TOKENS = (  # the names that a template may use
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_MARKS = ("\ue000", "\ue001")  # private-use characters: they are in no template, and content that has them is refused

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
    """One compiled template. The date that a template may ask for is that of its making, the same for all rows."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], end_tokens: Sequence[str]) -> None:
        """``special_tokens`` by name, as a template sees them; ``end_tokens``: every token that could end a turn."""
        made_at = datetime.now().astimezone()
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["namespace"] = _Namespace
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = made_at.strftime
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateProblem(f"the chat template does not compile: {error}") from error
        self._special_tokens = dict(special_tokens)
        self._end_tokens = tuple(end_tokens)
        self._end_of_turn = self._find_end_of_turn()

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
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise TemplateProblem(f"the chat template cannot render it: {error}") from error

    def apply(self, row: Conversation, *, train_on_inputs: bool) -> Rendered:
        """Render a row and find what of it is trained: the assistant's turns, or everything; never weight 0.

        Raises TemplateProblem, also when the template leaves tools, tool calls or reasoning out.
        """
        messages = [_prepare(message) for message in row.messages]
        text = self.render(messages, row.tools)
        self._require_all(messages, row.tools, text)
        turns = _Turns(self, messages, row.tools, text)
        if row.weight == 0:
            return Rendered(text, [])
        silent = [index for index, message in enumerate(row.messages) if message.get("weight", 1) == 0]
        if train_on_inputs:
            return Rendered(text, _subtract((0, len(text)), [turns.find(index) for index in silent]))
        spoken = (index for index, message in enumerate(messages) if message["role"] == "assistant")
        return Rendered(text, [turns.find(index) for index in spoken if index not in silent])

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
            if self._try_render(other_messages, other_tools) == text:
                raise TemplateProblem(f"the chat template leaves {part} out")

    def _try_render(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> str | None:
        try:
            return self.render(messages, tools)
        except TemplateProblem:
            return None

    def cut_after_end_token(self, text: str) -> int:
        """Return where a turn ends: after the token that closes it, without the white space that some add."""
        stripped = text.rstrip()
        return len(stripped) if stripped.endswith(self._end_tokens) else len(text)

    @property
    def end_of_turn(self) -> str:
        """The token that closes an assistant's turn, or an empty string."""
        return self._end_of_turn

    def _find_end_of_turn(self) -> str:
        probe = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARKS[0]}]
        after = (self._try_render(probe, None) or "").rpartition(_MARKS[0])[2].strip()
        return next((token for token in self._end_tokens if token and after.startswith(token)), "")


class _Turns:
    """Finds the part of a rendered conversation that one message made."""

    def __init__(
        self, template: ChatTemplate, messages: list[Message], tools: list[dict[str, Any]] | None, text: str
    ) -> None:
        self._template = template
        self._messages = messages
        self._tools = tools
        self._text = text

    def find(self, index: int) -> Span:
        """Return the characters of one message; of an assistant's, only what the model itself would write."""
        is_assistant = self._messages[index]["role"] == "assistant"
        start = self._find_start(index, prompt=is_assistant)
        through = self._text if index == len(self._messages) - 1 else self._render_prefix(index + 1, prompt=False)
        if start is not None and through is not None and len(through) > start:
            return start, self._template.cut_after_end_token(through) if is_assistant else len(through)
        if is_assistant and (marked := self._find_marked(index)):
            return (marked[0] if start is None else start), marked[1]
        raise TemplateProblem(f"in the chat template's text, message {index} cannot be told from the others")

    def _find_start(self, index: int, *, prompt: bool) -> int | None:
        if index == 0 and not prompt:
            return 0
        before = self._render_prefix(index, prompt=prompt)
        return None if before is None else len(before)

    def _render_prefix(self, count: int, *, prompt: bool) -> str | None:
        """Render the first ``count`` messages; None when the whole text does not begin so."""
        try:
            prefix = self._template.render(self._messages[:count], self._tools, prompt=prompt)
        except TemplateProblem:  # some templates refuse an empty or an unfinished conversation
            return None
        return prefix if self._text.startswith(prefix) else None

    def _find_marked(self, index: int) -> Span | None:
        """Find a message's content by marks around it; the token that ends the turn belongs to it."""
        content = self._messages[index].get("content")
        if not content or any(mark in self._text for mark in _MARKS):
            return None
        for variant in (content, content.strip()):  # templates may trim
            marked = {**self._messages[index], "content": _MARKS[0] + variant + _MARKS[1]}
            text = self._template.render([*self._messages[:index], marked, *self._messages[index + 1 :]], self._tools)
            if text.translate(_WITHOUT_MARKS) == self._text and text.count(_MARKS[0]) == text.count(_MARKS[1]) == 1:
                start, end = text.index(_MARKS[0]), text.index(_MARKS[1]) - 1
                rest = self._text[end:]
                gap = len(rest) - len(rest.lstrip())
                if self._template.end_of_turn and rest.startswith(self._template.end_of_turn, gap):
                    end += gap + len(self._template.end_of_turn)
                return start, end
        return None


_WITHOUT_MARKS = str.maketrans("", "", "".join(_MARKS))


def _prepare(message: Message) -> Message:
    """Shape a message as templates expect it: arguments as objects, reasoning under its usual names, no weight."""
    prepared = {key: value for key, value in message.items() if key != "weight"}
    reasoning = message.get("reasoning_content", message.get("reasoning"))
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    if "tool_calls" in message:
        prepared["tool_calls"] = [_prepare_call(call) for call in message["tool_calls"]]
    return prepared


def _drop(message: Message, *keys: str) -> Message:
    kept = {key: value for key, value in message.items() if key not in keys}
    return {**kept, "content": kept.get("content", "")}


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


def load_template(model_dir: Path, config: Mapping[str, Any], end_tokens: Sequence[str]) -> ChatTemplate | None:
    """Return the model's template, from its own file or from ``tokenizer_config.json`` (``config``); None: it has none.

    Raises InvalidRequest when it does not compile.
    """
    source = _find_source(model_dir, config)
    if source is None:
        return None
    try:
        return ChatTemplate(source, dict(_list_special_tokens(config)), end_tokens)
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


def _list_special_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _SPECIAL_TOKENS:
        token = get_token_text(config.get(name))
        if token is not None:
            yield name, token


def get_token_text(value: Any) -> str | None:
    """Return a token from ``tokenizer_config.json``, where it is a string or an object with its content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None

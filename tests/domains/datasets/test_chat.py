"""Chats: the text is the one that transformers renders, and trained is what the model itself would write."""

from __future__ import annotations

import re

import pytest

from luthier.datasets import chat, formats, tokenise
from luthier.errors import InvalidRequest

SYSTEM = {"role": "system", "content": "be kind"}
USER = {"role": "user", "content": "hi there"}
FIRST = {"role": "assistant", "content": "hello\nyou "}
AGAIN = {"role": "user", "content": "  and?  "}
LAST = {"role": "assistant", "content": "bye é\U0001f600"}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q": "ü"}'}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "1", "content": "42"}


@pytest.fixture
def render(make_model):
    """Return a function that renders messages with a template and gives the text and its trained pieces."""

    def run(template, *messages, tools=None, weight=1, train_on_inputs=False):
        tokeniser = tokenise.Tokeniser(make_model(template), max_seq_length=4096)
        row = formats.Conversation(list(messages), tools, weight)
        text, trained, _ = tokeniser.render(row, train_on_inputs=train_on_inputs)
        return text, [text[start:end] for start, end in trained]

    return run


@pytest.mark.parametrize("template", ["chatml", "default system", "generation"])
def test_turns_when_trained_are_the_answers_with_their_end(render, template):
    _, trained = render(template, SYSTEM, USER, FIRST, AGAIN, LAST)
    assert trained == ["hello\nyou <|im_end|>", "bye é\U0001f600<|im_end|>"]


def test_text_when_there_is_no_system_message_has_the_templates_own(render):
    text, trained = render("default system", USER, LAST)
    assert text.startswith("<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nhi there<|im_end|>")
    assert trained == ["bye é\U0001f600<|im_end|>"]


@pytest.mark.parametrize("template", ["chatml", "default system", "thinking"])
def test_conversation_when_the_assistant_begins_has_its_turn_found(render, template):
    _, trained = render(template, FIRST, USER, LAST)
    assert trained[0] == "hello\nyou <|im_end|>"
    assert trained[1].endswith("bye é\U0001f600<|im_end|>")


def test_turns_when_the_template_trims_them_are_found(render):
    text, trained = render("trimming", USER, FIRST, AGAIN, LAST)
    assert text.startswith("<|im_start|><|im_start|>user\nhi there")  # bos first
    assert trained == ["hello\nyou<|im_end|>", "bye é\U0001f600<|im_end|>"]


def test_turns_when_the_template_has_no_end_token_are_trained_to_their_last_character(render):
    _, trained = render("no end", USER, FIRST, AGAIN, LAST)
    assert trained == ["hello\nyou \n", "bye é\U0001f600\n"]


def test_turns_when_the_template_changes_earlier_ones_are_still_found(render):
    reasoned = {**FIRST, "reasoning": "hmm"}
    text, trained = render("thinking", USER, reasoned, AGAIN, {**LAST, "reasoning_content": "so"})
    assert "hmm" not in text
    assert trained == ["hello\nyou <|im_end|>", "<think>\nso\n</think>\nbye é\U0001f600<|im_end|>"]


def test_tool_calls_when_the_template_shows_them_are_trained(render):
    text, trained = render("thinking", USER, CALLING, ANSWER, FIRST, AGAIN, LAST, tools=TOOLS)
    assert '"name": "find"' in text
    assert trained[0] == '<call>find {"q": "ü"}</call><|im_end|>'
    assert trained[1] == "hello\nyou <|im_end|>"
    assert len(trained) == 3


@pytest.mark.parametrize(
    ("messages", "tools", "part"),
    [
        ((USER, LAST), TOOLS, "tools"),
        # The name of the tool stands in the text, but the tool itself does not.
        ((USER, {"role": "assistant", "content": "find"}), TOOLS, "tools"),
        ((USER, {**LAST, "tool_calls": [CALL]}), None, "tool_calls"),
        ((USER, {**LAST, "reasoning": "so"}), None, "reasoning"),
    ],
)
def test_row_when_the_template_leaves_a_part_out_is_refused(render, messages, tools, part):
    with pytest.raises(chat.TemplateProblem, match=f"leaves {part} out"):
        render("chatml", *messages, tools=tools)


def test_message_when_weight_0_is_not_trained(render):
    assert render("chatml", USER, {**FIRST, "weight": 0}, AGAIN, LAST)[1] == ["bye é\U0001f600<|im_end|>"]
    assert render("chatml", USER, {**FIRST, "weight": 0})[1] == []


def test_row_when_weight_0_is_not_trained(render):
    assert render("chatml", USER, FIRST, weight=0)[1] == []
    assert render("chatml", USER, FIRST, weight=0, train_on_inputs=True)[1] == []


def test_inputs_when_trained_are_all_but_weight_0(render):
    text, trained = render("chatml", SYSTEM, USER, FIRST, AGAIN, LAST, train_on_inputs=True)
    assert trained == [text]
    _, trained = render(
        "chatml", SYSTEM, {**USER, "weight": 0}, {**FIRST, "weight": 0}, AGAIN, LAST, train_on_inputs=True
    )
    assert trained == [
        "<|im_start|>system\nbe kind<|im_end|>\n",
        "<|im_start|>assistant\n",
        "\n<|im_start|>user\n  and?  <|im_end|>\n<|im_start|>assistant\nbye é\U0001f600<|im_end|>\n",
    ]


def test_turn_when_its_content_holds_the_end_token_is_whole(render):
    tricky = {"role": "assistant", "content": "a<|im_end|>\nb"}
    assert render("chatml", USER, tricky, AGAIN, LAST)[1][0] == "a<|im_end|>\nb<|im_end|>"


def test_turn_when_it_cannot_be_told_apart_is_refused(render):
    tricky = {"role": "assistant", "content": "a<|im_end|>b"}
    with pytest.raises(chat.TemplateProblem, match="message 1 cannot be told apart"):
        render("thinking", USER, tricky, AGAIN, LAST)


def test_row_when_the_template_refuses_it_says_why(render):
    with pytest.raises(chat.TemplateProblem, match="Conversation roles must alternate"):
        render("trimming", SYSTEM, USER, LAST)


@pytest.mark.parametrize("template", ["hostile", "hostile namespace"])
def test_template_when_it_reaches_into_python_is_stopped(render, template):
    with pytest.raises(chat.TemplateProblem):
        render(template, USER, LAST)


def test_template_when_it_does_not_compile_names_the_model_as_the_cause(make_model):
    with pytest.raises(InvalidRequest, match="does not compile"):
        tokenise.Tokeniser(make_model("broken"), max_seq_length=4096)


def test_template_when_in_a_file_of_its_own_is_used(make_model):
    tokeniser = tokenise.Tokeniser(make_model("chatml", in_own_file=True), max_seq_length=4096)
    row = formats.Conversation([USER, LAST], None, 1)
    assert tokeniser.render(row, train_on_inputs=False).text.startswith("<|im_start|>user\nhi there")


def test_turns_when_there_are_thousands_are_found_without_rendering_each_beginning(make_model, monkeypatch):
    rendered = []
    render = chat.ChatTemplate.render

    def count(self, messages, *arguments, **options):
        rendered.append(len(messages))
        return render(self, messages, *arguments, **options)

    monkeypatch.setattr(chat.ChatTemplate, "render", count)
    tokeniser = tokenise.Tokeniser(make_model("chatml"), max_seq_length=512)
    row = formats.Conversation([USER, LAST] * 2500, None, 1)
    text, trained, _ = tokeniser.render(row, train_on_inputs=False)
    assert sum(rendered) < 10 * len(row.messages)
    assert {text[start:end] for start, end in trained} == {"bye é\U0001f600<|im_end|>"}
    (sample,) = tokeniser.encode([chat.Rendered(text, trained)])
    (whole,) = tokeniser.encode([chat.Rendered(text, _find_answers(text))])
    assert sample.trained[:512] == whole.trained[:512]


def _find_answers(text):
    return [found.span() for found in re.finditer(r"bye [^<]*<\|im_end\|>", text)]


def test_turn_when_the_template_prompts_for_another_behind_the_last_ends_before_that(render):
    text, trained = render("prompting always", USER, FIRST, AGAIN, LAST)
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert trained == ["hello\nyou <|im_end|>", "bye é\U0001f600<|im_end|>"]


def test_turn_when_the_template_ends_the_last_one_only_is_refused(render):
    with pytest.raises(chat.TemplateProblem, match="message 3 cannot be told apart"):
        render("one end", USER, FIRST, AGAIN, LAST)


def test_text_when_the_template_asks_for_the_date_is_the_same_every_day(render):
    assert render("dated", USER, LAST)[0].startswith("26 Jul 2024<|im_start|>")


CONVERSATIONS = [
    ([USER, LAST], None),
    ([SYSTEM, USER, FIRST, AGAIN, LAST], None),
    ([USER, FIRST, AGAIN], None),
    ([USER, {"role": "assistant", "content": '<b>"quoted"</b> & {{ braces }} {% x %}'}], None),
    ([USER, {**FIRST, "reasoning": "hmm"}, AGAIN, {**LAST, "reasoning_content": "so"}], None),
    ([USER, CALLING, ANSWER, LAST], TOOLS),
]


@pytest.mark.training
@pytest.mark.parametrize("template", ["chatml", "default system", "trimming", "thinking", "generation"])
def test_text_and_tokens_when_compared_are_those_of_transformers(make_model, template):
    from transformers import AutoTokenizer

    folder = make_model(template)
    oracle, tokeniser = AutoTokenizer.from_pretrained(folder), tokenise.Tokeniser(folder, max_seq_length=4096)
    compared = 0
    for messages, tools in CONVERSATIONS:
        try:
            ours = tokeniser.render(formats.Conversation(messages, tools, 1), train_on_inputs=False)
        except chat.TemplateProblem:
            continue
        compared += 1
        prepared = [chat.prepare(message) for message in messages]
        assert ours.text == oracle.apply_chat_template(prepared, tools=tools, tokenize=False)
        theirs = oracle.apply_chat_template(prepared, tools=tools, return_dict=False)
        assert tokeniser.encode([ours])[0].input_ids == theirs
    assert compared >= 3

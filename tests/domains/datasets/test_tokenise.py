"""Tokenising: what the model reads, what the loss counts, what is cut, dropped and refused."""

from __future__ import annotations

import pytest

from luthier.datasets import tokenise, tokens
from luthier.errors import InvalidRequest

USER = {"role": "user", "content": "hello there"}
ASSISTANT = {"role": "assistant", "content": "how are you?"}
CHAT = {"messages": [USER, ASSISTANT]}
END = 2


@pytest.fixture
def run(tmp_path, write_rows, make_model, tokenizer):
    """Return a function that tokenises rows and gives the counts and each row as (text, trained text)."""

    def tokenise_rows(rows, template="chatml", *, max_seq_length=512, train_on_inputs="auto", **build):
        out = tmp_path / "out.tokens"
        counts = tokenise.tokenise_file(
            rows if hasattr(rows, "open") else write_rows(rows),
            make_model(template, **build),
            out,
            max_seq_length=max_seq_length,
            train_on_inputs=train_on_inputs,
        )
        opened = tokens.open_tokens(out)
        assert opened.counts == counts
        read = []
        for start, end in zip(opened.offsets, opened.offsets[1:], strict=False):
            input_ids, trained = list(opened.input_ids[start:end]), opened.trained[start:end]
            chosen = [token for token, mark in zip(input_ids, trained, strict=True) if mark]
            read.append([tokenizer.decode(ids, skip_special_tokens=False) for ids in (input_ids, chosen)])
        assert counts.used_rows == len(read)
        assert counts.tokens == len(opened.input_ids)
        assert counts.trained_tokens == sum(opened.trained)
        return counts, read

    return tokenise_rows


def test_conversation_when_tokenised_trains_the_answer_and_its_end(run):
    _, [[text, trained]] = run([CHAT])
    assert text == "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\nhow are you?<|im_end|>\n"
    assert trained == "how are you?<|im_end|>"


@pytest.mark.parametrize(
    ("train_on_inputs", "expected"),
    [
        ("auto", "a price<|im_end|>"),
        (False, "a price<|im_end|>"),
        (True, "user\nwhat?<|im_end|>\n<|im_start|>assistant\na price<|im_end|>\n"),  # nothing predicts the first
    ],
)
def test_prompt_when_the_model_chats_is_a_users_message(run, train_on_inputs, expected):
    _, [[text, trained]] = run([{"prompt": "what?", "completion": "a price"}], train_on_inputs=train_on_inputs)
    assert text == "<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\na price<|im_end|>\n"
    assert trained == expected


@pytest.mark.parametrize(
    ("train_on_inputs", "expected"), [("auto", " a price<|im_end|>"), (True, "hat? a price<|im_end|>")]
)
def test_prompt_when_the_model_has_no_template_is_joined_with_the_completion(run, train_on_inputs, expected):
    row = {"prompt": "what?", "completion": " a price"}
    _, [[text, trained]] = run([row], None, train_on_inputs=train_on_inputs)
    assert text == "what? a price<|im_end|>"
    assert trained == expected


@pytest.mark.parametrize("train_on_inputs", ["auto", True, False])
def test_text_when_tokenised_is_trained_whole_with_its_end(run, train_on_inputs):
    _, [[text, trained]] = run([{"text": "a tale"}], train_on_inputs=train_on_inputs)
    assert (text, trained) == ("a tale<|im_end|>", " tale<|im_end|>")


def test_text_when_one_token_long_has_its_end_to_learn(run):
    counts, [[text, trained]] = run([{"text": "a"}])
    assert (text, trained, counts.trained_tokens) == ("a<|im_end|>", "<|im_end|>", 1)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a tale "}, " tale <|im_end|>"),
        ({"text": " "}, "<|im_end|>"),
        ({"prompt": "what?", "completion": " a price  "}, " a price  <|im_end|>"),
        ({"prompt": "what?", "completion": " a price  ", "weight": 0}, ""),
    ],
)
def test_row_when_the_tokenizer_trims_offsets_is_trained_with_its_last_space_and_its_end(run, row, expected):
    other = {"prompt": "q", "completion": "a"} if "prompt" in row else {"text": "the"}
    _, read = run([row, other], None, trims_offsets=True)
    assert [trained for _, trained in read[:-1]] == [expected] * bool(expected)


def test_text_when_the_tokenizer_adds_bos_and_eos_has_each_once(run):
    _, [[text, trained]] = run([{"text": "a tale"}], adds_bos=True)
    assert (text, trained) == ("<|im_start|>a tale<|im_end|>", "a tale<|im_end|>")
    _, [[text, trained]] = run([{"prompt": "a ", "completion": "tale"}], None, adds_bos=True)
    assert (text, trained) == ("<|im_start|>a tale<|im_end|>", "tale<|im_end|>")


def test_text_when_it_ends_with_eos_already_gets_no_second(run):
    _, [[text, _]] = run([{"text": "a tale<|im_end|>"}])
    assert text == "a tale<|im_end|>"


def test_chat_when_the_tokenizer_adds_bos_gets_none_beyond_the_templates(run):
    _, [[text, _]] = run([CHAT], adds_bos=True)
    assert text.startswith("<|im_start|>user")


def test_packs_are_those_of_the_maximum_length(run):
    length = run([CHAT])[0].longest_row_tokens
    assert run([CHAT] * 3, max_seq_length=2 * length)[0].packs == 2
    assert run([CHAT] * 3, max_seq_length=2 * length - 1)[0].packs == 3


def test_row_when_too_long_is_cut_and_named(run):
    counts, [[_, whole], [_, trained]] = run(
        [CHAT, {"messages": [USER, {**ASSISTANT, "content": "you " * 50}]}], max_seq_length=40
    )
    assert (counts.truncated_rows, counts.truncated_lines, counts.longest_row_tokens) == (1, [2], 40)
    assert whole.endswith("<|im_end|>")
    assert trained.startswith("you you")
    assert not trained.endswith("<|im_end|>")


def test_row_when_cut_before_its_answer_is_dropped_and_named(run):
    long = {"messages": [{"role": "user", "content": "x" * 500}, ASSISTANT]}
    counts, read = run(
        [CHAT, long, CHAT, {"messages": [USER, {**ASSISTANT, "weight": 0}]}, {**CHAT, "weight": 0}], max_seq_length=64
    )
    assert len(read) == 2
    assert (counts.rows, counts.used_rows, counts.dropped_rows, counts.dropped_lines) == (5, 2, 3, [2, 4, 5])
    assert (counts.truncated_rows, counts.truncated_lines) == (1, [2])


def test_rows_when_many_are_dropped_name_the_first_hundred(run):
    counts, _ = run([{**CHAT, "weight": 0}] * 150 + [CHAT])
    assert (counts.dropped_rows, counts.dropped_lines) == (150, list(range(1, 101)))


@pytest.mark.parametrize(
    ("rows", "max_seq_length", "way_out"),
    [([{**CHAT, "weight": 0}], 512, "weight"), ([CHAT], 8, "max_seq_length")],
)
def test_file_when_nothing_can_be_trained_is_the_datas_fault(run, tmp_path, rows, max_seq_length, way_out):
    with pytest.raises(InvalidRequest) as caught:
        run(rows, max_seq_length=max_seq_length)
    assert caught.value.code == "no_trainable_token"
    assert way_out in caught.value.hint
    assert not (tmp_path / "out.tokens").exists()


@pytest.mark.parametrize(
    ("rows", "template", "code", "says"),
    [
        ([CHAT, {"messages": []}], "chatml", "invalid_row", r"line 2, \$.messages: expected"),
        ([CHAT, {"text": "a"}], "chatml", "invalid_row", "line 2"),
        ([{"input_ids": [1]}], "chatml", "invalid_row", "line 1"),
        ([CHAT, {"messages": [ASSISTANT]}], "trimming", "chat_template", "line 2: .*must alternate"),
        ([CHAT], None, "chat_template", "no chat template"),
    ],
)
def test_file_when_a_row_does_not_fit_names_its_line(run, rows, template, code, says):
    with pytest.raises(InvalidRequest, match=says) as caught:
        run(rows, template)
    assert caught.value.code == code
    assert caught.value.hint


def test_file_when_odd_in_shape_is_tokenised_as_it_was_checked(run, tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a", "id": 1}\r\n\r\n{"text": "b"}')
    counts, read = run(path)
    assert [text for text, _ in read] == ["a<|im_end|>", "b<|im_end|>"]
    assert counts.rows == 2
    path.write_bytes(b"[]")
    with pytest.raises(InvalidRequest, match="JSON array"):
        run(path)


def test_trained_tokens_when_characters_span_several_are_all_of_them(run):
    _, [[_, trained]] = run(
        [{"messages": [{"role": "user", "content": "é\U0001f600"}, {"role": "assistant", "content": "\U0001f600é漢"}]}]
    )
    assert trained == "\U0001f600é漢<|im_end|>"


def test_rows_when_more_than_a_batch_keep_their_order(run):
    _, read = run([{"text": f"row {number}"} for number in range(1000)])
    assert [text for text, _ in read] == [f"row {number}<|im_end|>" for number in range(1000)]

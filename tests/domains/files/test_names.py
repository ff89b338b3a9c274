from __future__ import annotations

import pytest

from luthier.errors import ServiceError
from luthier.files import names

GOOD = {"file_name": "train.jsonl", "purpose": "fine-tune", "file_type": "jsonl"}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("train.jsonl", "train.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\train.jsonl", "train.jsonl"),
        ("/absolute/train.jsonl", "train.jsonl"),
        ("a\0b\r\nSet-Cookie: x.jsonl", "abSet-Cookie: x.jsonl"),
        ("\x1b[31mred\x1b[0m.jsonl", "[31mred[0m.jsonl"),
        ("evil\u202elnosj.exe", "evillnosj.exe"),  # a bidi override would show the ending backwards
        ("lone\ud800.jsonl", "lone.jsonl"),
        ("  spaced name.jsonl ", "spaced name.jsonl"),
        ("größe \N{GRINNING FACE}.jsonl", "größe \N{GRINNING FACE}.jsonl"),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
    ],
)
def test_filename_when_cleaned_has_no_folder_and_nothing_invisible(sent, kept):
    assert names.clean_filename(sent) == kept


@pytest.mark.parametrize("sent", ["/", "..", ".", "\0", "\u200b", "   "])
def test_filename_when_nothing_is_left_is_refused(sent):
    with pytest.raises(ServiceError) as caught:
        names.clean_filename(sent)
    assert caught.value.param == "file_name"


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"file_name": ""}, "file_name", "missing_file_name"),
        ({"purpose": ""}, "purpose", "missing_purpose"),
        ({"purpose": "mining"}, "purpose", "invalid_purpose"),
        ({"file_type": "exe"}, "file_type", "invalid_file_type"),
        ({"file_type": "", "file_name": "train"}, "file_type", "invalid_file_type"),
        ({"file_type": "parquet"}, "file_type", "unsupported_file_type"),
        ({"checksum": "abc"}, "checksum", "invalid_checksum"),
        ({"checksum": "g" * 64}, "checksum", "invalid_checksum"),
    ],
)
def test_request_when_a_field_is_wrong_names_it_and_the_way_out(changes, param, code):
    with pytest.raises(ServiceError) as caught:
        names.parse_request({**GOOD, **changes})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.hint


def test_request_without_type_takes_it_from_the_name():
    request = names.parse_request({"file_name": "Eval.CSV", "purpose": "eval"})
    assert request.file_type == "csv"


def test_request_when_checksum_is_upper_case_is_the_same():
    assert names.parse_request({**GOOD, "checksum": "AB" * 32}).sha256 == "ab" * 32

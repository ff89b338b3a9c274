"""The journal: nothing that was written whole is lost, nothing torn is read, whatever byte it was cut at."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.protocol import journal

MESSAGES = [
    journal.Started(at=1.0, pid=1, device="cpu", precision="fp32", threads=2, versions={"torch": "2"}),
    journal.Metric(at=2.0, kind="train", step=1, epoch=0.5, loss=1.25, grad_norm=0.5, learning_rate=1e-4, tokens=10),
    journal.Notice(at=3.0, message='quotes " and \n breaks, and ünïcode'),
    journal.Finished(at=4.0, step=1, epochs_completed=1),
]


def write(path, messages):
    with journal.JournalWriter(path) as writer:
        for message in messages:
            writer.write(message)
    return path.read_bytes()


def test_read_when_cut_at_any_byte_gives_the_whole_messages_before_it(tmp_path):
    data = write(tmp_path / "journal.jsonl", MESSAGES)
    cut = tmp_path / "cut.jsonl"
    for size in range(len(data) + 1):
        cut.write_bytes(data[:size])
        messages, end = journal.read(cut)
        whole = data[:size].count(b"\n")
        assert [message for _, message in messages] == MESSAGES[:whole]
        assert end == data[:size].rfind(b"\n") + 1


def test_writer_when_tail_is_torn_at_any_byte_cuts_it_and_goes_on(tmp_path):
    data = write(tmp_path / "journal.jsonl", MESSAGES)
    path = tmp_path / "cut.jsonl"
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        write(path, MESSAGES[-1:])
        messages, _ = journal.read(path)
        assert [message for _, message in messages] == [*MESSAGES[: data[:size].count(b"\n")], MESSAGES[-1]]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.integers(1, 200), max_size=30))
def test_read_in_pieces_gives_the_same_as_at_once(tmp_path, pieces):
    data = write(tmp_path / f"{time.monotonic_ns()}.jsonl", MESSAGES * 3)
    growing = tmp_path / f"{time.monotonic_ns()}.grow"
    seen, offset, size = [], 0, 0
    for piece in [*pieces, len(data)]:
        size = min(len(data), size + piece)
        growing.write_bytes(data[:size])
        messages, offset = journal.read(growing, offset)
        seen += messages
    assert seen == journal.read(growing)[0]
    assert len(seen) == len(MESSAGES) * 3


def test_read_when_journal_is_missing_is_empty(tmp_path):
    assert journal.read(tmp_path / "none.jsonl") == ([], 0)


def test_read_when_a_whole_line_is_no_message_names_its_byte(tmp_path):
    path = tmp_path / "journal.jsonl"
    data = write(path, MESSAGES[:1])
    path.write_bytes(data + b'{"type":"unheard"}\n')
    good, end = journal.read(path)
    assert [message for _, message in good] == MESSAGES[:1]
    with pytest.raises(journal.JournalCorrupt, match=f"byte {len(data)}"):
        journal.read(path, end)


def test_writer_when_killed_leaves_what_it_wrote(tmp_path):
    path = tmp_path / "journal.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from luthier.protocol import journal\n"
        "w = journal.JournalWriter(Path(sys.argv[1]))\n"
        "w.write(journal.Notice(message='kept'), durable=True)\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, 9)
    process.communicate()
    messages, _ = journal.read(path)
    assert [message.message for _, message in messages] == ["kept"]


def test_write_when_the_disk_is_full_says_so_and_leaves_the_journal_whole(tmp_path):
    path = tmp_path / "journal.jsonl"
    # The limit on a file's size stands in for a full disk: the last write is cut short in the same way.
    code = (
        "import resource, signal, sys; from pathlib import Path; from luthier.protocol import journal\n"
        "w = journal.JournalWriter(Path(sys.argv[1])); w.write(journal.Notice(message='before'))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (Path(sys.argv[1]).stat().st_size + 20, hard))\n"
        "try: w.write(journal.Notice(message='lost'))\n"
        "except OSError as error: print(error.errno)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "w.write(journal.Failed(kind='disk', message='after'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{errno.ENOSPC}\n", "")
    assert [message.message for _, message in journal.read(path)[0]] == ["before", "after"]

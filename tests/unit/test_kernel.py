from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from luthier import faults, ids, log
from luthier.clock import ManualClock, SystemClock
from luthier.settings import Settings

SECRET = "lk-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"


def test_redact_keeps_enough_to_recognise_a_key_and_no_more():
    text = log.redact(f"key {SECRET} and /upload?token=abcdefghijklmnop&x=1")
    assert SECRET not in text
    assert "abcdefghijklmnop" not in text.partition("token=")[2]
    assert "lk-abcdefgh…" in text


def test_log_line_when_a_field_holds_a_secret_does_not_show_it():
    code = (
        "from luthier import log; log.configure(level='info', as_json=True)\n"
        f"log.get_logger('t').info('x', api_key='{SECRET}', url='/f?token=0123456789abcdef', note='{SECRET}')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    fields = json.loads(result.stderr)
    assert SECRET not in result.stderr
    assert "0123456789abcdef" not in result.stderr
    assert fields["api_key"] == "…"
    assert result.stdout == ""


def test_fault_when_armed_ends_the_process_at_the_nth_hit():
    code = "from luthier import faults\nfor i in range(5): faults.hit('a.b'); print(i, flush=True)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"LUTHIER_FAULTS": "x:1,a.b:3"}
    )
    assert result.returncode == faults.EXIT_CODE
    assert result.stdout == "0\n1\n"


def test_ids_differ_and_match_the_wire():
    made = {ids.new_id("ft") for _ in range(1000)}
    assert len(made) == 1000
    assert all(set(one[3:]) <= set("0123456789abcdef-") and one.startswith("ft-") for one in made)


def test_clocks_are_aware_utc():
    assert SystemClock().now().tzinfo is UTC
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    clock.advance(1.5)
    assert clock.now() == datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "value"), [("port", "70000"), ("slots", "0"), ("device", "tpu"), ("lease_s", "0"), ("log_level", "loud")]
)
def test_settings_when_out_of_range_are_refused(monkeypatch, name, value):
    monkeypatch.setenv(f"LUTHIER_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()

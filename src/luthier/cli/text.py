"""Values as people read them. Whatever comes from a server or a file is escaped before it is shown."""

from __future__ import annotations

import re
from datetime import datetime

NANOS = 1_000_000_000

# Control characters (a terminal would obey them), lone surrogates (stdout would refuse them), and the marks
# that hide text or turn its direction.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escape(value: object) -> str:
    """Return ``value`` as one line that is safe to print: what a terminal would act upon is spelt out."""
    return _UNSAFE.sub(_spell_out, str(value))


def _spell_out(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"  # noqa: PLR2004 - one byte


def shorten(text: str, width: int) -> str:
    """Cut ``text`` to ``width`` characters, the last of them an ellipsis when something was cut."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


def format_size(size_bytes: int) -> str:
    """1234567 → ``1.2 MB`` (decimal units, as disks and clouds count)."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004 - a unit is a thousand of the one before
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    """1 → ``1 error``, 1234 → ``1,234 errors``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def format_duration(seconds: float) -> str:
    """3725 → ``1 h 02 min``; 95 → ``1 min 35 s``; 12 → ``12 s``."""
    whole = max(0, round(seconds))
    minutes, rest_s = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest_s:02d} s" if minutes else f"{rest_s} s"


def format_nanos(nanos: int) -> str:
    """Nano-dollars as dollars, exactly: at least two decimals, as many as it takes. 1500 → ``$0.0000015``."""
    dollars, rest = divmod(abs(nanos), NANOS)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nanos < 0 else ''}${dollars:,}.{decimals}"


def parse_time(value: object) -> datetime | None:
    """Read a time of the API (ISO 8601 text or whole seconds since 1970) as local time; None when it is neither."""
    try:
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value).astimezone()
        return datetime.fromisoformat(str(value)).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def format_time(value: object) -> str:
    """Local time to the minute; ``-`` for none."""
    at = parse_time(value)
    return at.strftime("%Y-%m-%d %H:%M") if at else "-"


def format_clock(value: object) -> str:
    """Local time of day to the second, for logs of today's work; ``--:--:--`` for none."""
    at = parse_time(value)
    return at.strftime("%H:%M:%S") if at else "--:--:--"

"""Calendar months in UTC, which statements, usage and limits are of. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from luthier.errors import InvalidRequest

_FIRST_YEAR, _LAST_YEAR = 2000, 9998  # the month after the last one must have a name, too


@dataclass(frozen=True)
class Month:
    """From ``start`` to before ``end``."""

    year: int
    number: int  # 1 is January

    @property
    def period(self) -> str:
        """The month as YYYY-MM."""
        return f"{self.year:04d}-{self.number:02d}"

    @property
    def start(self) -> datetime:
        """When it begins."""
        return datetime(self.year, self.number, 1, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """When the next one begins."""
        return datetime(self.year + self.number // 12, self.number % 12 + 1, 1, tzinfo=UTC)


def get_month(moment: datetime) -> Month:
    """Return the month of a moment."""
    in_utc = moment.astimezone(UTC)
    return Month(in_utc.year, in_utc.month)


def parse_month(text: str | None, *, now: datetime) -> Month:
    """Return the month that is written as YYYY-MM; None is the present one. Raises InvalidRequest."""
    if text is None:
        return get_month(now)
    match = re.fullmatch(r"(\d{4})-(0[1-9]|1[0-2])", text, re.ASCII)
    if match is None or not _FIRST_YEAR <= int(match[1]) <= _LAST_YEAR:
        raise InvalidRequest(
            "invalid_month",
            f"month is not a month: {text[:20]!r}",
            hint=f"write it as YYYY-MM, for example {get_month(now).period}",
            param="month",
        )
    return Month(int(match[1]), int(match[2]))

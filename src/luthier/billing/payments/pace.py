"""When a thing that is not settled is looked at again. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

CALL_LEASE: Final = timedelta(seconds=120)  # longer than any call with its retries: whoever began it is done, or dead
FIRST_PAUSE_S: Final = 5
LONGEST_PAUSE_S: Final = 900
REPEAT_WITHIN: Final = timedelta(hours=1)  # later only looked for: keys are kept for a day, and nobody waits any more
ACTION_WITHIN: Final = timedelta(hours=24)  # so long a card's owner has to confirm


def plan_look(looks: int, now: datetime) -> datetime:
    """Return when to look for the next time after so many looks: pauses double up to a quarter of an hour."""
    doubled = FIRST_PAUSE_S * 2 ** min(looks, LONGEST_PAUSE_S.bit_length())
    return now + timedelta(seconds=min(doubled, LONGEST_PAUSE_S))


def get_horizon(now: datetime) -> datetime:
    """Return the latest time that any look is planned for; a later one was written before the clock was put back."""
    return now + max(CALL_LEASE, timedelta(seconds=LONGEST_PAUSE_S))

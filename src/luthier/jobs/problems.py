"""Reading JSON values strictly, and collecting every problem before one error tells them all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from luthier.errors import InvalidRequest

_SHOWN_CHARACTERS = 80  # of a value in a message: enough to recognise it


def show(value: object) -> str:
    """Write a JSON value for a message as the caller wrote it, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


@dataclass
class Problems:
    """What is wrong with a request so far.

    Each reader returns a usable value in any case, so that reading goes on after a problem.
    """

    found: list[dict[str, str]] = field(default_factory=list)

    def add(self, param: str, message: str, *, hint: str | None = None) -> None:
        """Note a problem of a field, named as the caller wrote it."""
        problem = {"param": param, "message": message}
        if hint is not None:
            problem["hint"] = hint
        self.found.append(problem)

    def require_none(self) -> None:
        """Raise one InvalidRequest for all that was noted."""
        if self.found:
            self._raise()

    def _raise(self) -> NoReturn:
        first = self.found[0]
        if len(self.found) == 1:
            raise InvalidRequest(
                "invalid_request",
                first["message"],
                hint=first.get("hint"),
                param=first["param"],
                details=self.found,
            )
        raise InvalidRequest(
            "invalid_request",
            f"{len(self.found)} problems: {'; '.join(problem['message'] for problem in self.found)}",
            hint="; ".join(dict.fromkeys(problem["hint"] for problem in self.found if "hint" in problem)) or None,
            param=first["param"],
            details=self.found,
        )

    def read_int(self, param: str, value: object, *, default: int, low: int, high: int) -> int:
        """Read a whole number from ``low`` to ``high``; 3.0 is one, true is not."""
        if value is None:
            return default
        number = value
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int):
            self.add(param, f"{param} must be a whole number from {low} to {high}: {show(value)}")
            return default
        if not low <= number <= high:
            self.add(param, f"{param} must be from {low} to {high}: {show(value)}")
            return default
        return number

    def read_float(
        self,
        param: str,
        value: object,
        *,
        default: float,
        low: float,
        high: float = math.inf,
        open_low: bool = False,
        open_high: bool = False,
    ) -> float:
        """Read a finite number in a range; ``open_low`` and ``open_high`` leave the bound itself out."""
        if value is None:
            return default
        wanted = _describe_range(low, high, open_low=open_low, open_high=open_high)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.add(param, f"{param} must be a number {wanted}: {show(value)}")
            return default
        fits_low = value > low if open_low else value >= low
        fits_high = value < high if open_high else value <= high
        # Compared before it is turned into a float: JSON has whole numbers that no float can hold.
        if not (fits_low and fits_high and value <= _LARGEST_FLOAT):
            self.add(param, f"{param} must be {wanted}: {show(value)}")
            return default
        return float(value)

    def read_bool(self, param: str, value: object, *, default: bool) -> bool:
        """Read true or false."""
        if value is None:
            return default
        if not isinstance(value, bool):
            self.add(param, f"{param} must be true or false: {show(value)}")
            return default
        return value

    def read_text(self, param: str, value: object) -> str | None:
        """Read a string; an empty one counts as not sent, as the clients mean it."""
        if value is None or value == "":
            return None
        if not isinstance(value, str):
            self.add(param, f"{param} must be a string: {show(value)}")
            return None
        return value

    def read_choice(self, param: str, value: object, *, choices: Sequence[str], default: str) -> str:
        """Read one of a few words; an empty one counts as not sent."""
        if value is None or value == "":
            return default
        if not isinstance(value, str) or value not in choices:
            self.add(param, f"{param} must be {' or '.join(choices)}: {show(value)}")
            return default
        return value

    def read_object(self, param: str, value: object) -> Mapping[str, object]:
        """Read a JSON object; one that was not sent is empty."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.add(param, f"{param} must be an object: {show(value)}")
            return {}
        return value


_LARGEST_FLOAT = 1.7976931348623157e308


def _describe_range(low: float, high: float, *, open_low: bool, open_high: bool) -> str:
    if math.isinf(high):
        return f"above {low:g}" if open_low else f"of at least {low:g}"
    if not open_low and not open_high:
        return f"from {low:g} to {high:g}"
    return f"{'above' if open_low else 'of at least'} {low:g} and {'below' if open_high else 'at most'} {high:g}"

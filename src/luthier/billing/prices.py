"""The price list: what a token costs, read from a TOML file and checked whole before it is used."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from luthier.billing.money import MAX_NANOS, NANOS_A_UNIT, parse_decimal
from luthier.errors import ServiceError

Method = Literal["sft", "dpo"]
TrainingType = Literal["Lora", "Full"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
TYPES: Final[tuple[TrainingType, ...]] = get_args(TrainingType)

SHIPPED: Final = Path(__file__).with_name("prices.toml")
_TOKENS_A_RATE: Final = 1_000_000
_MAX_RATE_NANOS: Final = 1_000 * NANOS_A_UNIT  # a thousand dollars a token is a slip of the pen
_KEYS: Final = frozenset({"version", "currency", "minimum_charge", "bands", "models"})

Rates = Mapping[tuple[Method, TrainingType], int]  # nano-dollars a token


class NoPublishedRate(Exception):
    """The model is larger than any band and has no price of its own; the message names its size and the largest band."""


class InvalidPriceList(ServiceError):
    """A price file that cannot be used; the message names the file, the key and the value."""


@dataclass(frozen=True)
class Band:
    """Models of fewer than ``below_params`` parameters."""

    below_params: int
    rates: Rates


@dataclass(frozen=True)
class PriceList:
    """All prices of one version. Bands go up; a model's own rates go before its band's."""

    version: str
    currency: str
    minimum_nanos: int  # a job that runs to its end costs at least this
    bands: tuple[Band, ...]
    models: Mapping[str, Rates]

    def get_rate(self, model: str, param_count: int, *, training_type: TrainingType, method: Method = "sft") -> int:
        """Return the nano-dollars a token. Raises NoPublishedRate for a model beyond the largest band."""
        if (own := self.models.get(model)) is not None:
            return own[method, training_type]
        for band in self.bands:
            if param_count < band.below_params:
                return band.rates[method, training_type]
        largest = self.bands[-1].below_params // 1_000_000_000 - 1
        msg = (
            f"no rate is published for a model of {param_count / 1e9:.0f}B parameters; "
            f"the largest band ends at {largest}B"
        )
        raise NoPublishedRate(msg)


def load(path: Path | None = None) -> PriceList:
    """Return the price list of a file, the shipped one by default. Raises InvalidPriceList."""
    path = path or SHIPPED
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refuse(path, f"cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _refuse(path, f"is not TOML: {error}") from None
    return _Reader(path).read(document)


def _refuse(path: Path, problem: str) -> InvalidPriceList:
    return InvalidPriceList(
        "invalid_price_list",
        f"the price file {path} {problem}",
        hint=f"the shipped file is an example: {SHIPPED}",
    )


class _Reader:
    """Reads one document; every refusal names the key at fault."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, document: Mapping[str, Any]) -> PriceList:
        if unknown := sorted(set(document) - _KEYS):
            raise self._refuse(unknown[0], document[unknown[0]], f"one of {', '.join(sorted(_KEYS))}")
        return PriceList(
            version=self._text(document, "version"),
            currency=self._text(document, "currency"),
            minimum_nanos=self._amount("minimum_charge", document.get("minimum_charge", "0"), scale=1),
            bands=self._bands(document.get("bands")),
            models={name: self._rates(f"models.{name}", own) for name, own in self._table(document, "models").items()},
        )

    def _bands(self, found: object) -> tuple[Band, ...]:
        if not isinstance(found, list) or not found:
            raise self._refuse("bands", found, "at least one [[bands]]")
        bands: list[Band] = []
        for number, one in enumerate(found, 1):
            name = f"bands[{number}]"
            below = one.get("below_params") if isinstance(one, dict) else None
            floor = bands[-1].below_params if bands else 0
            if not isinstance(below, int) or below <= floor:
                raise self._refuse(f"{name}.below_params", below, f"a whole number above {floor}")
            rates = {key: value for key, value in one.items() if key != "below_params"}
            bands.append(Band(below, self._rates(name, rates)))
        return tuple(bands)

    def _rates(self, name: str, found: object) -> Rates:
        table = found if isinstance(found, dict) else {}
        rates: dict[tuple[Method, TrainingType], int] = {}
        for method in METHODS:
            own = table.get(method)
            for kind in TYPES:
                key = f"{name}.{method}.{kind.lower()}"
                value = own.get(kind.lower()) if isinstance(own, dict) else None
                rates[method, kind] = self._amount(key, value, scale=_TOKENS_A_RATE)
        return rates

    def _amount(self, key: str, value: object, *, scale: int) -> int:
        nanos = parse_decimal(value)
        wanted = "an amount as text, with at most three decimals" if scale > 1 else "an amount as text, as 0.50"
        if nanos is None or nanos < 0 or nanos % scale or nanos > MAX_NANOS or nanos / scale > _MAX_RATE_NANOS:
            raise self._refuse(key, value, wanted)
        return int(nanos) // scale

    def _text(self, document: Mapping[str, Any], key: str) -> str:
        value = document.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self._refuse(key, value, "a text that is not empty")
        return value.strip()

    def _table(self, document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = document.get(key, {})
        if not isinstance(value, dict):
            raise self._refuse(key, value, "a table")
        return value

    def _refuse(self, key: str, value: object, wanted: str) -> InvalidPriceList:
        return _refuse(self._path, f"has {key} = {value!r}, wanted is {wanted}")

"""The price list: the published rates as shipped, a file of one's own, and every slip in it named."""

from __future__ import annotations

import pytest

from luthier.billing import prices
from luthier.billing.prices import InvalidPriceList, NoPublishedRate

BILLION = 1_000_000_000
OWN = """
version = "2"
currency = "EUR"
minimum_charge = "0.50"
[[bands]]
below_params = 1000
sft = { lora = "0.001", full = "2" }
dpo = { lora = "3", full = "4" }
[models."acme/ours"]
sft = { lora = "10", full = "20" }
dpo = { lora = "30", full = "40" }
"""


@pytest.mark.parametrize(
    ("billions", "lora_dollars", "full_dollars"),
    [(0.135, 0.48, 0.54), (16, 0.48, 0.54), (17, 1.50, 1.65), (69, 1.50, 1.65), (70.6, 2.90, 3.20), (100, 2.90, 3.20)],
)
def test_rate_is_the_published_one_a_million_tokens(billions, lora_dollars, full_dollars):
    params = int(billions * BILLION)
    shipped = prices.load()
    for kind, dollars in (("Lora", lora_dollars), ("Full", full_dollars)):
        rate = shipped.get_rate("any", params, training_type=kind)
        assert rate * 1_000_000 == round(dollars * BILLION)
        assert shipped.get_rate("any", params, training_type=kind, method="dpo") * 2 == rate * 5


def test_rate_when_model_is_beyond_every_band_raises():
    with pytest.raises(NoPublishedRate, match=r"405B .* ends at 100B"):
        prices.load().get_rate("any", 405 * BILLION, training_type="Lora")


def test_own_file_has_own_bands_and_models_before_them(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_text(OWN)
    own = prices.load(path)
    assert (own.version, own.currency, own.minimum_nanos) == ("2", "EUR", 500_000_000)
    assert own.get_rate("any", 10, training_type="Lora") == 1
    assert own.get_rate("acme/ours", 405 * BILLION, training_type="Full", method="dpo") == 40_000


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"0.001"', '"0.0001"', "bands[1].sft.lora = '0.0001'"),
        ('"0.001"', '"-1"', "bands[1].sft.lora = '-1'"),
        ('"0.001"', '"nan"', "bands[1].sft.lora = 'nan'"),
        ('"0.001"', '"999999999999"', "bands[1].sft.lora"),
        ('lora = "10", ', "", "models.acme/ours.sft.lora = None"),
        ('currency = "EUR"', "", "currency = None"),
        ('version = "2"', "version = 2", "version = 2"),
        ("below_params = 1000", "below_params = 0", "bands[1].below_params = 0"),
        ("minimum_charge", "minimum_price", "minimum_price = '0.50'"),
        ("[[bands]]", "[[bands]", "is not TOML"),
    ],
)
def test_file_with_a_slip_is_refused_by_the_key_at_fault(tmp_path, old, new, named):
    path = tmp_path / "prices.toml"
    assert old in OWN
    path.write_text(OWN.replace(old, new))
    with pytest.raises(InvalidPriceList) as caught:
        prices.load(path)
    assert str(path) in caught.value.message
    assert named in caught.value.message


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidPriceList, match=r"no\.toml cannot be read: No such file"):
        prices.load(tmp_path / "no.toml")

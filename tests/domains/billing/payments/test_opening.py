"""Which processor the settings bring, what is missing, and that none of it is needed where payments are manual."""

from __future__ import annotations

import importlib.metadata
import inspect
import subprocess
import sys

import pytest

from luthier import log
from luthier.billing.payments.manual import ManualProcessor
from luthier.billing.payments.opening import build_processor
from luthier.billing.payments.processor import ChargeOrder, Processor, RefundOrder, SetupOrder
from luthier.billing.payments.stripe import StripeProcessor
from luthier.errors import Conflict, ServiceError
from luthier.settings import Settings

SECRET = "sk_test_0123456789abcdef"


def test_manual_is_the_default_and_refuses_everything_with_the_way_out(home):
    processor = build_processor(Settings(home=home))
    assert isinstance(processor, ManualProcessor)
    setup = SetupOrder("s", "org", "cus", "token", "pm_1", "https://x.example")
    charge = ChargeOrder("p", "org", "cus", "pm", 10**9, "USD", is_attended=True, return_url=None)
    calls = [
        processor.require_ready,
        lambda: processor.create_customer("org"),
        lambda: processor.start_card_setup(setup),
        lambda: processor.fetch_card_setup("seti"),
        lambda: processor.fetch_card("pm"),
        lambda: processor.detach_card("pm"),
        lambda: processor.charge(charge),
        lambda: processor.find_payment(charge, since=None),
        lambda: processor.fetch_payment("pi"),
        lambda: processor.cancel_payment("pi"),
        lambda: processor.refund(RefundOrder("r", "pi", 1)),
        lambda: processor.list_refunds("pi"),
        lambda: processor.fetch_refund("re"),
        lambda: processor.fetch_dispute("du"),
        lambda: processor.parse_webhook(b"", None),
    ]
    for call in calls:
        with pytest.raises(Conflict) as caught:
            call()
        assert caught.value.code == "payments_are_manual"
        assert "luthier billing grant" in caught.value.hint


def test_every_processor_has_every_method_of_the_protocol():
    methods = {name for name, _ in inspect.getmembers(Processor, inspect.isfunction) if not name.startswith("_")}
    for processor in (ManualProcessor, StripeProcessor):
        for name in methods:
            assert inspect.signature(getattr(processor, name)) == inspect.signature(getattr(Processor, name)), name


def test_stripe_is_opened_with_its_key_and_shows_it_nowhere(home):
    settings = Settings(
        home=home, payments_processor="stripe", stripe_secret_key=SECRET, stripe_webhook_secret="whsec_0123456789abcd"
    )
    processor = build_processor(settings)
    assert isinstance(processor, StripeProcessor)
    assert "0123456789" not in repr(settings) + str(settings.model_dump()) + repr(processor)


def test_stripe_without_its_key_or_in_a_currency_without_cents_is_refused(home):
    with pytest.raises(ServiceError, match="there is no secret key") as caught:
        build_processor(Settings(home=home, payments_processor="stripe"))
    assert "LUTHIER_STRIPE_SECRET_KEY" in caught.value.hint
    settings = Settings(home=home, payments_processor="stripe", stripe_secret_key=SECRET)
    with pytest.raises(ServiceError, match="price list's currency: JPY"):
        build_processor(settings, currency="JPY")


def test_webhook_without_its_secret_set_says_which_setting(home):
    processor = build_processor(Settings(home=home, payments_processor="stripe", stripe_secret_key=SECRET))
    with pytest.raises(Conflict) as caught:
        processor.parse_webhook(b"{}", "t=1,v1=x")
    assert "LUTHIER_STRIPE_WEBHOOK_SECRET" in caught.value.hint


def test_server_without_the_library_starts_with_manual_payments_and_names_the_extra_for_stripe(tmp_path):
    """In a process where ``import stripe`` finds nothing."""
    script = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "stripe":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "stripe" else find(name, package)
from pathlib import Path
from luthier.app import build_app
from luthier.settings import Settings
build_app(Settings(home=Path(sys.argv[1])))
assert "stripe" not in sys.modules
try:
    build_app(Settings(home=Path(sys.argv[1]), payments_processor="stripe", stripe_secret_key="sk_test_x"))
except Exception as error:
    print(error, "|", error.hint)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Stripe's library is not installed | pip install 'luthier[stripe]'" in done.stdout


def test_extra_is_declared_and_the_base_install_is_without_it():
    requirements = importlib.metadata.requires("luthier")
    named = [text for text in requirements if text.startswith("stripe")]
    assert named
    assert all("extra ==" in text for text in named)


def test_log_hides_stripe_s_secrets():
    text = log.redact(f"key {SECRET} and rk_live_0123456789abcdef, whsec_0123456789abcdef")
    assert text == "key sk_test_… and rk_live_…, whsec_…"

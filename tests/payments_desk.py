"""The payments' services with everything they take filled in, for tests that say one thing a line."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from luthier.accounts import service as accounts
from luthier.billing import audit, ledger
from luthier.billing.ledger import Balance, Cause
from luthier.billing.payments import card_setups, cards, charges, disputes, recharge, refunds, settling, webhooks
from luthier.billing.payments.schemas import AutoRechargeView, CardSetupView, CardView, PaymentView, RefundView
from luthier.billing.payments.stripe import StripeProcessor
from luthier.billing.policy import Policy, make_policy
from luthier.clock import ManualClock
from luthier.db import Database
from luthier.settings import Settings
from stripe_simulator import Simulator

DOLLAR = 1_000_000_000
RETURN_URL = "https://luthier.example/api/billing/return"


def make_settings(home: Path, stripe: Simulator, **fields: Any) -> Settings:
    """Return settings of a server that takes payments through the simulator."""
    return Settings(
        home=home,
        payments_processor="stripe",
        stripe_secret_key=stripe.secret_key,
        stripe_webhook_secret=stripe.webhook_secret,
        stripe_api_base=stripe.url,
        disk_reserve_bytes=0,
        **fields,
    )


def make_processor(stripe: Simulator, *, retries: int = 0, read_timeout_s: float = 5.0) -> StripeProcessor:
    """Return the real processor; without the library's retries, which pause."""
    return StripeProcessor(
        stripe.secret_key,
        webhook_secret=stripe.webhook_secret,
        api_base=stripe.url,
        retries=retries,
        read_timeout_s=read_timeout_s,
    )


@dataclass
class Desk:
    """One organization's payments."""

    database: Database
    clock: ManualClock
    stripe: Simulator
    policy: Policy
    processor: StripeProcessor
    organization_id: str
    delivered: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, database: Database, clock: ManualClock, stripe: Simulator, home: Path) -> Desk:
        with database.transaction() as tx:
            organization_id = accounts.create_organization(tx, name="Acme", now=clock.now())
        policy = make_policy(make_settings(home, stripe))
        return cls(database, clock, stripe, policy, make_processor(stripe), organization_id)

    @property
    def _parts(self) -> tuple[Database, StripeProcessor, str]:
        return self.database, self.processor, self.organization_id

    def _pass(self) -> datetime:
        """Let a second pass, so that no two things are of the same time."""
        self.clock.advance(1)
        return self.clock.now()

    def add_card(self, token: str = "pm_card_visa") -> CardSetupView:
        return card_setups.add_card(*self._parts, token=token, return_url=RETURN_URL, now=self._pass())

    def begin_setup(self, *, is_hosted: bool) -> CardSetupView:
        return card_setups.begin_setup(*self._parts, is_hosted=is_hosted, return_url=RETURN_URL, now=self.clock.now())

    def check_setup(self, setup_id: str) -> CardSetupView:
        return card_setups.check_setup(*self._parts, setup_id, now=self.clock.now())

    def remove_card(self, card_id: str) -> CardView:
        return cards.remove_card(*self._parts, card_id, now=self.clock.now())

    def list_cards(self) -> list[CardView]:
        with self.database.read() as tx:
            return cards.list_cards(tx, self.organization_id)

    def pay(self, dollars: float = 20, key: str | None = None, **options: Any) -> PaymentView:
        return charges.pay(
            *self._parts,
            round(dollars * DOLLAR),
            return_url=RETURN_URL,
            request_key=key,
            policy=self.policy,
            now=self._pass(),
            **options,
        )

    def refund(
        self, payment_id: str, dollars: float | None = None, key: str | None = None, **options: Any
    ) -> RefundView:
        nanos = None if dollars is None else round(dollars * DOLLAR)
        return refunds.refund_payment(
            *self._parts, payment_id, nanos, reason="asked for", request_key=key, now=self._pass(), **options
        )

    def list_payments(self) -> list[PaymentView]:
        with self.database.read() as tx:
            return charges.list_payments(tx, self.organization_id)

    def get_payment(self, payment_id: str) -> PaymentView:
        with self.database.read() as tx:
            return charges.get_payment(tx, self.organization_id, payment_id)

    def list_refunds(self, payment_id: str) -> list[RefundView]:
        with self.database.read() as tx:
            return refunds.list_refunds(tx, self.organization_id, payment_id)

    def list_disputes(self) -> list[Any]:
        with self.database.read() as tx:
            return disputes.list_disputes(tx, self.organization_id)

    def set_recharge(self, threshold: float, target: float) -> AutoRechargeView:
        with self.database.transaction() as tx:
            return recharge.configure(
                tx,
                self.processor,
                self.organization_id,
                threshold_nanos=round(threshold * DOLLAR),
                target_nanos=round(target * DOLLAR),
                policy=self.policy,
                now=self.clock.now(),
            )

    def find_recharge(self) -> AutoRechargeView | None:
        with self.database.read() as tx:
            return recharge.find(tx, self.organization_id)

    def run_recharge(self) -> int:
        return recharge.run_due(self.database, self.processor, policy=self.policy, now=self.clock.now())

    def settle(self, after_s: float = 150) -> None:
        """Look at what is open once so much time has passed; by default more than any call's lease."""
        self.clock.advance(after_s)
        settling.settle_open(self.database, self.processor, policy=self.policy, now=self.clock.now())

    def deliver(self, event: dict[str, Any], **options: Any) -> str:
        body, signature = self.stripe.sign(event, **options)
        return self.receive(body, signature)

    def receive(self, body: bytes, signature: str | None) -> str:
        return webhooks.receive(self.database, self.processor, body, signature, now=self.clock.now())

    def deliver_all(self) -> list[str]:
        """Deliver every event that was not delivered yet; return what came of each."""
        new = [event for event in self.stripe.events if event["id"] not in self.delivered]
        self.delivered |= {event["id"] for event in new}
        return [self.deliver(event) for event in new]

    def spend(self, dollars: float, key: str | None = None) -> None:
        """Take so much from the balance, as an operator's correction; once for a key."""
        with self.database.transaction() as tx:
            ledger.adjust(
                tx,
                self.organization_id,
                -round(dollars * DOLLAR),
                key=key or f"spend-{self._pass()}",
                cause=Cause("operator", "test"),
                note="Spent",
                now=self.clock.now(),
            )

    @property
    def balance(self) -> Balance:
        with self.database.read() as tx:
            return ledger.get_balance(tx, self.organization_id)

    @property
    def cash(self) -> float:
        return self.balance.cash_nanos / DOLLAR

    def list_notes(self) -> list[str]:
        with self.database.read() as tx:
            return [entry.note for entry in ledger.list_entries(tx, self.organization_id)]

    def assert_books_balance(self) -> None:
        assert audit.verify(self.database).problems == []

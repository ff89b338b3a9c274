"""Cards, payments, refunds and automatic recharging. Any key of the organization may look; an admin key pays."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.api.auth import AdminParam, PrincipalParam
from luthier.api.context import Services, ServicesParam
from luthier.api.platform.amounts import AmountText, spell
from luthier.api.platform.webhooks import RETURN_PATH
from luthier.api.times import Time
from luthier.billing.money import parse_amount
from luthier.billing.payments import card_setups, cards, charges, disputes, recharge, refunds
from luthier.billing.payments.schemas import (
    AutoRechargeView,
    CardSetupStatus,
    CardSetupView,
    CardView,
    DisputeView,
    PaymentStatus,
    PaymentView,
    RefundStatus,
    RefundView,
)
from luthier.errors import InvalidRequest

MAX_REASON_LENGTH: Final = 200

router = APIRouter(prefix="/api/billing", tags=["billing"])

IdempotencyKey = Annotated[
    str | None, Header(description="The same key again has one effect; send a new UUID with each new payment")
]


class CardAnswer(BaseModel):
    """A saved card, without its number."""

    object: Literal["card"] = "card"
    id: str
    brand: str
    last4: str
    exp_month: int
    exp_year: int
    is_default: bool = Field(description="Payments are charged to it")
    created_at: Time
    removed_at: Time | None


class CardList(BaseModel):
    """The organization's cards, oldest first."""

    object: Literal["list"] = "list"
    data: list[CardAnswer]


class CardRequest(BaseModel):
    """A card that the processor knows already."""

    model_config = ConfigDict(extra="forbid")

    payment_method: str = Field(max_length=300, description="The processor's token, pm_…; never a card's number")


class SetupRequest(BaseModel):
    """A card that its owner will type."""

    model_config = ConfigDict(extra="forbid")

    hosted: bool = Field(
        default=True, description="On the processor's page; false: on a page of yours, by client_secret"
    )


class SetupAnswer(BaseModel):
    """A card on its way to being saved. Its owner goes on at ``action_url``, where there is one."""

    object: Literal["card_setup"] = "card_setup"
    id: str
    status: CardSetupStatus
    action_url: str | None
    client_secret: str | None = Field(description="For a page that saves the card itself; told once")
    failure_code: str | None
    failure_message: str | None
    card: CardAnswer | None
    created_at: Time


@router.get("/cards")
def list_cards(principal: PrincipalParam, services: ServicesParam) -> CardList:
    """List the organization's cards."""
    with services.database.read() as tx:
        return CardList(data=[_describe_card(card) for card in cards.list_cards(tx, principal.organization_id)])


@router.post("/cards", status_code=201)
def add_card(body: CardRequest, request: Request, principal: AdminParam, services: ServicesParam) -> SetupAnswer:
    """Save a card by a token of the processor's; 402 when it is declined."""
    setup = card_setups.add_card(
        services.database,
        services.processor,
        principal.organization_id,
        token=body.payment_method,
        return_url=_make_return_url(request, services),
        now=services.clock.now(),
    )
    return _describe_setup(setup)


@router.post("/cards/setups", status_code=201)
def begin_card_setup(
    body: SetupRequest, request: Request, principal: AdminParam, services: ServicesParam
) -> SetupAnswer:
    """Begin to save a card that its owner will type, on the processor's page or on one of yours."""
    setup = card_setups.begin_setup(
        services.database,
        services.processor,
        principal.organization_id,
        is_hosted=body.hosted,
        return_url=_make_return_url(request, services),
        now=services.clock.now(),
    )
    return _describe_setup(setup)


@router.get("/cards/setups/{setup_id}")
def get_card_setup(setup_id: str, principal: PrincipalParam, services: ServicesParam) -> SetupAnswer:
    """Show how the saving of a card stands; the processor is asked."""
    setup = card_setups.check_setup(
        services.database, services.processor, principal.organization_id, setup_id, now=services.clock.now()
    )
    return _describe_setup(setup)


@router.put("/cards/{card_id}/default")
def set_default_card(card_id: str, principal: AdminParam, services: ServicesParam) -> CardAnswer:
    """Charge payments to this card from now on."""
    with services.database.transaction() as tx:
        return _describe_card(cards.set_default(tx, principal.organization_id, card_id))


@router.delete("/cards/{card_id}")
def remove_card(card_id: str, principal: AdminParam, services: ServicesParam) -> CardAnswer:
    """Remove a card; it is not charged any more."""
    card = cards.remove_card(
        services.database, services.processor, principal.organization_id, card_id, now=services.clock.now()
    )
    return _describe_card(card)


class PaymentRequest(BaseModel):
    """A payment by card."""

    model_config = ConfigDict(extra="forbid")

    amount: AmountText = Field(description='A decimal number in whole cents, "20" or "20.50"')
    card_id: str | None = Field(default=None, description="The default card, when left out")


class RefundRequest(BaseModel):
    """A part of a payment that is to go back to its card."""

    model_config = ConfigDict(extra="forbid")

    amount: AmountText | None = Field(default=None, description="All that is left of it, when left out")
    reason: str = Field(min_length=1, max_length=MAX_REASON_LENGTH, description="Stands in the statement")


class PaymentAnswer(BaseModel):
    """A payment. ``created``: nobody knows yet, and it is looked after; ``needs_action``: see ``action_url``."""

    object: Literal["payment"] = "payment"
    id: str
    status: PaymentStatus
    amount_nanos: int
    amount: str
    currency: str
    is_automatic: bool
    card_id: str
    card: str
    action_url: str | None
    failure_code: str | None
    failure_message: str | None
    refunded_nanos: int
    refunded: str
    disputed_nanos: int
    disputed: str
    created_at: Time
    updated_at: Time


class PaymentList(BaseModel):
    """The organization's newest payments, newest first."""

    object: Literal["list"] = "list"
    data: list[PaymentAnswer]


class RefundAnswer(BaseModel):
    """A refund. ``created``: on its way."""

    object: Literal["payment_refund"] = "payment_refund"
    id: str
    payment_id: str
    status: RefundStatus
    amount_nanos: int
    amount: str
    currency: str
    reason: str
    is_external: bool = Field(description="Made at the processor, not here")
    failure_message: str | None
    created_at: Time
    updated_at: Time


class RefundList(BaseModel):
    """A payment's refunds, oldest first."""

    object: Literal["list"] = "list"
    data: list[RefundAnswer]


@router.get("/payments")
def list_payments(
    principal: PrincipalParam,
    services: ServicesParam,
    limit: Annotated[int, Query(ge=1, le=1000, description="Only the newest so many")] = charges.LIST_LIMIT,
) -> PaymentList:
    """List the organization's payments."""
    with services.database.read() as tx:
        found = charges.list_payments(tx, principal.organization_id, limit=limit)
    return PaymentList(data=[_describe_payment(payment) for payment in found])


@router.post("/payments", status_code=201)
def pay(
    body: PaymentRequest,
    request: Request,
    principal: AdminParam,
    services: ServicesParam,
    idempotency_key: IdempotencyKey = None,
) -> PaymentAnswer:
    """Charge a card; 402 when it is declined. The balance has the amount once the payment succeeded."""
    payment = charges.pay(
        services.database,
        services.processor,
        principal.organization_id,
        parse_amount(body.amount),
        return_url=_make_return_url(request, services),
        request_key=idempotency_key,
        card_id=body.card_id,
        policy=services.policy,
        now=services.clock.now(),
    )
    return _describe_payment(payment)


@router.get("/payments/{payment_id}")
def get_payment(payment_id: str, principal: PrincipalParam, services: ServicesParam) -> PaymentAnswer:
    """Show a payment; one that is not settled is asked for at the processor."""
    payment = charges.check_payment(
        services.database, services.processor, principal.organization_id, payment_id, now=services.clock.now()
    )
    return _describe_payment(payment)


@router.get("/payments/{payment_id}/refunds")
def list_refunds(payment_id: str, principal: PrincipalParam, services: ServicesParam) -> RefundList:
    """List what went back of a payment."""
    with services.database.read() as tx:
        found = refunds.list_refunds(tx, principal.organization_id, payment_id)
    return RefundList(data=[_describe_refund(refund, services) for refund in found])


@router.post("/payments/{payment_id}/refunds", status_code=201)
def refund_payment(
    payment_id: str,
    body: RefundRequest,
    principal: AdminParam,
    services: ServicesParam,
    idempotency_key: IdempotencyKey = None,
) -> RefundAnswer:
    """Send a payment, or a part of it, back to its card: at most the cash that is available."""
    refund = refunds.refund_payment(
        services.database,
        services.processor,
        principal.organization_id,
        payment_id,
        None if body.amount is None else parse_amount(body.amount),
        reason=body.reason,
        request_key=idempotency_key,
        now=services.clock.now(),
    )
    return _describe_refund(refund, services)


class DisputeAnswer(BaseModel):
    """A payment that the card's owner contests. ``taken`` is what the balance is without because of it."""

    object: Literal["dispute"] = "dispute"
    id: str
    payment_id: str
    status: str
    reason: str
    amount_nanos: int
    amount: str
    taken_nanos: int
    taken: str
    created_at: Time
    updated_at: Time


class DisputeList(BaseModel):
    """The organization's disputes, newest first."""

    object: Literal["list"] = "list"
    data: list[DisputeAnswer]


@router.get("/disputes")
def list_disputes(principal: PrincipalParam, services: ServicesParam) -> DisputeList:
    """List the payments that a card's owner contests."""
    with services.database.read() as tx:
        found = disputes.list_disputes(tx, principal.organization_id)
    return DisputeList(data=[_describe_dispute(dispute) for dispute in found])


class AutoRechargeRequest(BaseModel):
    """When the card is charged by itself, and up to what balance."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    threshold: AmountText | None = Field(default=None, description="Below this available balance the card is charged")
    target: AmountText | None = Field(default=None, description="So much is available then")


class AutoRechargeAnswer(BaseModel):
    """How the organization's card is charged by itself. ``notice`` says why it waits or was switched off."""

    object: Literal["auto_recharge"] = "auto_recharge"
    enabled: bool
    currency: str
    threshold_nanos: int | None = None
    threshold: str | None = None
    target_nanos: int | None = None
    target: str | None = None
    failures: int = Field(default=0, description="In a row")
    notice: str | None = None


@router.get("/auto-recharge")
def get_auto_recharge(principal: PrincipalParam, services: ServicesParam) -> AutoRechargeAnswer:
    """Show when the card is charged by itself."""
    with services.database.read() as tx:
        return _describe_recharge(recharge.find(tx, principal.organization_id), services)


@router.put("/auto-recharge")
def set_auto_recharge(body: AutoRechargeRequest, principal: AdminParam, services: ServicesParam) -> AutoRechargeAnswer:
    """Charge the card by itself whenever the available balance falls below the threshold, or stop doing so."""
    if not body.enabled:
        with services.database.transaction() as tx:
            return _describe_recharge(recharge.switch_off(tx, principal.organization_id), services)
    threshold_nanos = _require_amount(body.threshold, "threshold")
    target_nanos = _require_amount(body.target, "target")
    with services.database.transaction() as tx:
        view = recharge.configure(
            tx,
            services.processor,
            principal.organization_id,
            threshold_nanos=threshold_nanos,
            target_nanos=target_nanos,
            policy=services.policy,
            now=services.clock.now(),
        )
    return _describe_recharge(view, services)


def _require_amount(amount: AmountText | None, param: str) -> int:
    if amount is None:
        raise InvalidRequest(
            "invalid_amount",
            f"{param} is missing: automatic recharging needs a threshold and a target",
            hint='give both as decimal numbers, for example "10" and "50"; or enabled: false',
            param=param,
        )
    return parse_amount(amount, param=param)


def _make_return_url(request: Request, services: Services) -> str:
    """Return where a card's owner comes back to from the processor's page."""
    base_url = (services.settings.public_url or str(request.base_url)).rstrip("/")
    return f"{base_url}{RETURN_PATH}"


def _describe_card(card: CardView) -> CardAnswer:
    return CardAnswer(**_pick(card, "id", "brand", "last4", "exp_month", "exp_year", "is_default", *_LIFE))


def _describe_setup(setup: CardSetupView) -> SetupAnswer:
    names = ("id", "status", "action_url", "client_secret", "failure_code", "failure_message", "created_at")
    return SetupAnswer(**_pick(setup, *names), card=None if setup.card is None else _describe_card(setup.card))


def _describe_payment(payment: PaymentView) -> PaymentAnswer:
    names = ("id", "status", "currency", "is_automatic", "card_id", "action_url", "failure_code", "failure_message")
    return PaymentAnswer(
        **_pick(payment, *names, *_TIMES),
        card=payment.card_label,
        **spell(
            amount_nanos=payment.amount_nanos,
            refunded_nanos=payment.refunded_nanos,
            disputed_nanos=payment.disputed_nanos,
        ),
    )


def _describe_refund(refund: RefundView, services: Services) -> RefundAnswer:
    names = ("id", "payment_id", "status", "reason", "is_external", "failure_message")
    amount = spell(amount_nanos=refund.amount_nanos)
    return RefundAnswer(**_pick(refund, *names, *_TIMES), **amount, currency=services.policy.currency)


def _describe_dispute(dispute: DisputeView) -> DisputeAnswer:
    return DisputeAnswer(
        **_pick(dispute, "id", "payment_id", "status", "reason", *_TIMES),
        **spell(amount_nanos=dispute.amount_nanos, taken_nanos=dispute.taken_nanos),
    )


def _describe_recharge(view: AutoRechargeView | None, services: Services) -> AutoRechargeAnswer:
    if view is None:
        return AutoRechargeAnswer(enabled=False, currency=services.policy.currency)
    return AutoRechargeAnswer(
        enabled=view.is_enabled,
        currency=services.policy.currency,
        failures=view.failures,
        notice=view.notice,
        **spell(threshold_nanos=view.threshold_nanos, target_nanos=view.target_nanos),
    )


_TIMES: Final = ("created_at", "updated_at")
_LIFE: Final = ("created_at", "removed_at")


def _pick(view: object, *names: str) -> dict[str, Any]:
    return {name: getattr(view, name) for name in names}

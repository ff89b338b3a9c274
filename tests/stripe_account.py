"""What a Stripe account holds, and what happens to it: cards, payments, refunds, disputes, and the events of all.

Amounts are cents, as Stripe's. What left a card is in ``charges``, so that a test can say "exactly once".
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

Answer = tuple[int, dict[str, Any]]

DECLINED = ("card_declined", "generic_decline", "Your card was declined.")
POOR = ("card_declined", "insufficient_funds", "Your card has insufficient funds.")
AUTHENTICATE = ("authentication_required", "authentication_required", "This payment requires authentication.")


@dataclass(frozen=True)
class TestCard:
    """How a test card behaves: when it is saved, and when it is charged."""

    __test__ = False

    last4: str
    brand: str = "visa"
    setup: Literal["ok", "declined", "action"] = "ok"
    charge: Literal["ok", "declined", "poor", "action"] = "ok"


CARDS = {
    "pm_card_visa": TestCard("4242"),
    "pm_card_mastercard": TestCard("4444", brand="mastercard"),
    "pm_card_chargeDeclined": TestCard("0002", setup="declined"),
    "pm_card_chargeCustomerFail": TestCard("0341", charge="declined"),
    "pm_card_chargeCustomerPoor": TestCard("9995", charge="poor"),
    "pm_card_authenticationRequired": TestCard("3184", setup="action", charge="action"),
    "pm_card_authenticationRequiredOnSetup": TestCard("3155", setup="action"),
}


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, type: str, code: str | None, message: str, **more: Any) -> None:
        super().__init__(message)
        self.answer: Answer = (status, {"error": {"type": type, "code": code, "message": message, **more}})


def refuse(code: str, message: str) -> ApiError:
    return ApiError(400, "invalid_request_error", code, message)


class Account:
    """One account and everything in it. Methods that take ``params`` are API calls; the others are what a test does."""

    def __init__(self) -> None:
        self.customers: dict[str, dict[str, Any]] = {}
        self.methods: dict[str, dict[str, Any]] = {}
        self.setups: dict[str, dict[str, Any]] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.intents: dict[str, dict[str, Any]] = {}
        self.refunds: dict[str, dict[str, Any]] = {}
        self.disputes: dict[str, dict[str, Any]] = {}
        self.charges: list[tuple[str, int]] = []  # customer, amount
        self.events: list[dict[str, Any]] = []
        self.refunds_are_pending = False
        self._behaviour: dict[str, TestCard] = {}
        self._lock = threading.RLock()
        self._number = itertools.count(1)

    def count_charges(self) -> int:
        return len(self.charges)

    def finish_setup(self, ref: str, token: str = "pm_card_visa") -> None:
        """Let the card's owner finish: type a card on our page, or confirm one."""
        with self._lock:
            setup = self.setups[ref]
            method = setup["payment_method"] or self._make_method(token, setup["customer"])
            self._save(setup, method)

    def finish_session(self, ref: str, token: str = "pm_card_visa") -> None:
        """Let the card's owner finish Stripe's own page."""
        with self._lock:
            session = self.sessions[ref]
            self.finish_setup(session["setup_intent"], token)
            session["status"] = "complete"
            self._tell("checkout.session.completed", session)

    def confirm(self, ref: str, *, allowed: bool = True) -> None:
        """Let the card's owner confirm a payment, or refuse to."""
        with self._lock:
            intent = self.intents[ref]
            assert intent["status"] == "requires_action", intent["status"]
            intent["next_action"] = None
            if allowed:
                self._take(intent)
            else:
                self._decline(intent, ("payment_intent_authentication_failure", None, "It was not confirmed."))

    def open_dispute(self, intent: str, *, status: str = "needs_response", amount: int | None = None) -> str:
        with self._lock:
            dispute = {
                "id": self._name("du"),
                "object": "dispute",
                "payment_intent": intent,
                "amount": amount or self.intents[intent]["amount"],
                "status": status,
                "reason": "fraudulent",
                "balance_transactions": [],
            }
            self.disputes[dispute["id"]] = dispute
            self._tell("charge.dispute.created", dispute)
            return dispute["id"]

    def move_dispute(self, ref: str, status: str) -> None:
        with self._lock:
            self.disputes[ref]["status"] = status
            self._tell("charge.dispute.updated", self.disputes[ref])

    def refund_elsewhere(self, intent: str, amount: int) -> str:
        """Refund by the dashboard."""
        with self._lock:
            return str(self._refund({"payment_intent": intent, "amount": str(amount)})["id"])

    def end_refund(self, ref: str, status: str) -> None:
        with self._lock:
            refund = self.refunds[ref]
            refund["status"] = status
            refund["failure_reason"] = "expired_or_canceled_card" if status == "failed" else None
            self._tell("refund.failed" if status == "failed" else "refund.updated", refund)

    def detach_elsewhere(self, ref: str) -> None:
        with self._lock:
            self.methods[ref]["customer"] = None
            self._tell("payment_method.detached", self.methods[ref])

    def _name(self, prefix: str) -> str:
        return f"{prefix}_sim{next(self._number):06d}"

    def _get(self, kind: dict[str, dict[str, Any]], ref: str) -> dict[str, Any]:
        if ref not in kind:
            raise ApiError(404, "invalid_request_error", "resource_missing", f"No such object: '{ref}'")
        return kind[ref]

    def _tell(self, type: str, thing: dict[str, Any]) -> None:
        event = {"id": self._name("evt"), "object": "event", "type": type, "created": int(time.time())}
        self.events.append(event | {"data": {"object": json.loads(json.dumps(thing))}})

    def create_customer(self, params: dict[str, Any]) -> dict[str, Any]:
        ref = self._name("cus")
        self.customers[ref] = {"id": ref, "object": "customer", "metadata": params.get("metadata", {})}
        return self.customers[ref]

    def _make_method(self, token: str, customer: str | None) -> str:
        if token in self.methods:
            return token
        if token not in CARDS:
            raise ApiError(400, "invalid_request_error", "resource_missing", f"No such PaymentMethod: '{token}'")
        card, ref = CARDS[token], self._name("pm")
        details = {"brand": card.brand, "last4": card.last4, "exp_month": 12, "exp_year": 2034}
        self.methods[ref] = {"id": ref, "object": "payment_method", "type": "card", "card": details, "customer": None}
        self._behaviour[ref] = card
        return ref

    def get_method(self, ref: str, _: dict[str, Any]) -> dict[str, Any]:
        return self._get(self.methods, ref)

    def detach_method(self, ref: str, _: dict[str, Any]) -> dict[str, Any]:
        method = self._get(self.methods, ref)
        if method["customer"] is None:
            raise refuse("payment_method_unexpected_state", "The payment method is not attached to a customer")
        self.detach_elsewhere(ref)
        return method

    def create_setup(self, params: dict[str, Any]) -> dict[str, Any]:
        self._get(self.customers, params["customer"])
        setup = {
            "id": self._name("seti"),
            "object": "setup_intent",
            "customer": params["customer"],
            "status": "requires_payment_method",
            "payment_method": None,
            "metadata": params.get("metadata", {}),
            "last_setup_error": None,
            "next_action": None,
        }
        setup["client_secret"] = f"{setup['id']}_secret_simulator"
        self.setups[setup["id"]] = setup
        if params.get("confirm") == "true":
            method = self._make_method(params["payment_method"], params["customer"])
            behaviour = self._behaviour[method].setup
            if behaviour == "declined":
                setup["last_setup_error"] = _describe(DECLINED)
                self._tell("setup_intent.setup_failed", setup)
                raise ApiError(402, "card_error", *DECLINED[::2], decline_code=DECLINED[1], setup_intent=setup)
            if behaviour == "action":
                setup |= {"status": "requires_action", "payment_method": method}
                setup["next_action"] = self._redirect(setup["id"], params["return_url"])
            else:
                self._save(setup, method)
        return self._expand_setup(setup, params)

    def _save(self, setup: dict[str, Any], method: str) -> None:
        self.methods[method]["customer"] = setup["customer"]
        setup |= {"status": "succeeded", "payment_method": method, "next_action": None, "last_setup_error": None}
        self._tell("setup_intent.succeeded", setup)

    def _redirect(self, ref: str, return_url: str) -> dict[str, Any]:
        url = f"https://hooks.stripe.com/redirect/{ref}"
        return {"type": "redirect_to_url", "redirect_to_url": {"url": url, "return_url": return_url}}

    def _expand_setup(self, setup: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        if any("payment_method" in name for name in params.get("expand", {}).values()) and setup["payment_method"]:
            return setup | {"payment_method": self.methods[setup["payment_method"]]}
        return setup

    def get_setup(self, ref: str, params: dict[str, Any]) -> dict[str, Any]:
        return self._expand_setup(self._get(self.setups, ref), params)

    def create_session(self, params: dict[str, Any]) -> dict[str, Any]:
        setup = self.create_setup({"customer": params["customer"], **params.get("setup_intent_data", {})})
        ref = self._name("cs_test")
        self.sessions[ref] = {
            "id": ref,
            "object": "checkout.session",
            "mode": params["mode"],
            "status": "open",
            "setup_intent": setup["id"],
            "url": f"https://checkout.stripe.com/c/pay/{ref}",
            "metadata": params.get("metadata", {}),
        }
        return self.sessions[ref]

    def get_session(self, ref: str, params: dict[str, Any]) -> dict[str, Any]:
        session = self._get(self.sessions, ref)
        if "expand" in params:
            return session | {"setup_intent": self.get_setup(session["setup_intent"], params)}
        return session

    def create_intent(self, params: dict[str, Any]) -> dict[str, Any]:
        amount = int(params["amount"])
        if amount < 50:
            raise refuse("amount_too_small", "Amount must be at least $0.50 usd")
        method = self._get(self.methods, params["payment_method"])
        if method["customer"] != params["customer"]:
            raise refuse("payment_method_unexpected_state", "The payment method does not belong to the customer")
        intent = {
            "id": self._name("pi"),
            "object": "payment_intent",
            "amount": amount,
            "currency": params["currency"],
            "customer": params["customer"],
            "payment_method": method["id"],
            "created": int(time.time()),
            "status": "requires_confirmation",
            "metadata": params.get("metadata", {}),
            "last_payment_error": None,
            "next_action": None,
        }
        intent["client_secret"] = f"{intent['id']}_secret_simulator"
        self.intents[intent["id"]] = intent
        behaviour = self._behaviour[method["id"]].charge
        if behaviour == "action" and params["off_session"] != "true":
            intent |= {"status": "requires_action", "next_action": self._redirect(intent["id"], params["return_url"])}
            self._tell("payment_intent.requires_action", intent)
        elif behaviour != "ok":
            self._decline(intent, {"declined": DECLINED, "poor": POOR, "action": AUTHENTICATE}[behaviour])
            error = intent["last_payment_error"]
            code, decline_code, message = error.values()
            raise ApiError(402, "card_error", code, message, decline_code=decline_code, payment_intent=intent)
        else:
            self._take(intent)
        return intent

    def _take(self, intent: dict[str, Any]) -> None:
        intent["status"] = "succeeded"
        self.charges.append((intent["customer"], intent["amount"]))
        self._tell("payment_intent.succeeded", intent)

    def _decline(self, intent: dict[str, Any], failure: tuple[str, str | None, str]) -> None:
        intent |= {"status": "requires_payment_method", "last_payment_error": _describe(failure)}
        self._tell("payment_intent.payment_failed", intent)

    def get_intent(self, ref: str, _: dict[str, Any]) -> dict[str, Any]:
        return self._get(self.intents, ref)

    def list_intents(self, params: dict[str, Any]) -> dict[str, Any]:
        since = int(params.get("created", {}).get("gte", 0))
        found = [
            one for one in self.intents.values() if one["customer"] == params["customer"] and one["created"] >= since
        ]
        return _page(found[::-1], params)

    def cancel_intent(self, ref: str, _: dict[str, Any]) -> dict[str, Any]:
        intent = self._get(self.intents, ref)
        if intent["status"] in {"succeeded", "canceled"}:
            raise refuse("payment_intent_unexpected_state", f"It has a status of {intent['status']}")
        intent |= {"status": "canceled", "next_action": None}
        self._tell("payment_intent.canceled", intent)
        return intent

    def create_refund(self, params: dict[str, Any]) -> dict[str, Any]:
        return self._refund(params)

    def _refund(self, params: dict[str, Any]) -> dict[str, Any]:
        intent = self._get(self.intents, params["payment_intent"])
        amount = int(params["amount"])
        done = [one for one in self.refunds.values() if one["payment_intent"] == intent["id"]]
        left = intent["amount"] - sum(one["amount"] for one in done if one["status"] != "failed")
        if intent["status"] != "succeeded" or amount > left:
            raise refuse("charge_already_refunded", f"Refund amount is greater than the unrefunded amount: {left}")
        refund = {
            "id": self._name("re"),
            "object": "refund",
            "payment_intent": intent["id"],
            "amount": amount,
            "status": "pending" if self.refunds_are_pending else "succeeded",
            "failure_reason": None,
            "metadata": params.get("metadata", {}),
        }
        self.refunds[refund["id"]] = refund
        self._tell("refund.created", refund)
        return refund

    def get_refund(self, ref: str, _: dict[str, Any]) -> dict[str, Any]:
        return self._get(self.refunds, ref)

    def list_refunds(self, params: dict[str, Any]) -> dict[str, Any]:
        found = [one for one in self.refunds.values() if one["payment_intent"] == params["payment_intent"]]
        return _page(found[::-1], params)

    def get_dispute(self, ref: str, _: dict[str, Any]) -> dict[str, Any]:
        return self._get(self.disputes, ref)


def _describe(failure: tuple[str, str | None, str]) -> dict[str, Any]:
    return dict(zip(("code", "decline_code", "message"), failure, strict=True))


def _page(found: list[dict[str, Any]], params: dict[str, Any]) -> dict[str, Any]:
    start = 0
    if "starting_after" in params:
        start = [one["id"] for one in found].index(params["starting_after"]) + 1
    limit = int(params.get("limit", 10))
    return {"object": "list", "data": found[start : start + limit], "has_more": len(found) > start + limit, "url": "/"}

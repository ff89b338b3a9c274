"""A stateful Stripe on loopback, which Stripe's own library talks to.

It knows customers, test cards, SetupIntents, Checkout Sessions in mode ``setup``, PaymentIntents, Refunds, Disputes and
signed events; it keeps idempotency keys as Stripe does, and fails on command. What it charged is in ``charges``, so
that a test can say "exactly once".
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

# busy: 429, nothing done. drop: the connection breaks before anything is done. error: 500, nothing done, and so again
# for the key. lost: done, and the connection breaks. hang: done, and the answer never comes. lost_error: done, and 500.
Fault = Literal["busy", "drop", "error", "lost", "hang", "lost_error"]
Answer = tuple[int, dict[str, Any]]

HANG_S = 20.0
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


@dataclass
class Stored:
    """What an idempotency key brought; ``answer`` is None while that is under way."""

    fingerprint: str
    answer: Answer | None = None


class Simulator:
    """The server and everything it knows. All amounts are cents, as Stripe's."""

    def __init__(self) -> None:
        self.secret_key = "sk_test_simulator0123456789"
        self.webhook_secret = "whsec_simulator0123456789"
        self.customers: dict[str, dict[str, Any]] = {}
        self.methods: dict[str, dict[str, Any]] = {}
        self.setups: dict[str, dict[str, Any]] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.intents: dict[str, dict[str, Any]] = {}
        self.refunds: dict[str, dict[str, Any]] = {}
        self.disputes: dict[str, dict[str, Any]] = {}
        self.charges: list[tuple[str, int]] = []  # customer, amount: what really left a card
        self.events: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, idempotency key
        self.refunds_are_pending = False
        self.before_charge: Callable[[], None] = lambda: None
        self._behaviour: dict[str, TestCard] = {}
        self._keys: dict[str, Stored] = {}
        self._faults: list[tuple[Fault, str]] = []
        self._lock = threading.RLock()
        self._number = itertools.count(1)
        self._stopping = threading.Event()

    # What a test says

    @contextmanager
    def running(self) -> Iterator[Simulator]:
        """Serve on a free port for the length of the block."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(self))
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="stripe")
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            self._stopping.set()
            server.shutdown()
            server.server_close()
            thread.join()

    def fail(self, fault: Fault, path: str = "", *, times: int = 1) -> None:
        """Fail the next so many POSTs, or all requests to ``path``, where it is given."""
        self._faults += [(fault, path)] * times

    def clear_faults(self) -> None:
        self._faults.clear()

    def forget_keys(self) -> None:
        """Do what Stripe does after a day."""
        self._keys.clear()

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

    def sign(self, event: dict[str, Any], *, secret: str | None = None, at: float | None = None) -> tuple[bytes, str]:
        """Return an event's body and its header Stripe-Signature."""
        body = json.dumps(event).encode()
        stamp = int(time.time() if at is None else at)
        key = (secret or self.webhook_secret).encode()
        return body, f"t={stamp},v1={hmac.new(key, str(stamp).encode() + b'.' + body, hashlib.sha256).hexdigest()}"

    # What the library asks

    def answer(self, method: str, path: str, params: dict[str, Any], key: str | None) -> Answer | Literal["silence"]:
        """Return status and body, or that the connection is to break."""
        with self._lock:
            self.requests.append((method, path, key))
            fault = self._pop_fault(method, path)
            fingerprint = json.dumps([path, params], sort_keys=True)
            if method == "POST" and key in self._keys:
                return self._repeat(self._keys[key], fingerprint)
            if fault == "busy":
                return ApiError(429, "rate_limit_error", "rate_limit", "Too many requests").answer
            if fault == "drop":
                return "silence"
            if method == "POST" and key is not None:
                self._keys[key] = Stored(fingerprint)
        if method == "POST" and path == "/v1/payment_intents":
            self.before_charge()  # without the lock, so that others meet a key which is under way
        with self._lock:
            return self._finish(fault, method, path, params, key)

    def _finish(
        self, fault: Fault | None, method: str, path: str, params: dict[str, Any], key: str | None
    ) -> Answer | Literal["silence"]:
        broken = ApiError(500, "api_error", None, "An unknown error occurred").answer
        answer = broken if fault == "error" else self._route(method, path, params)
        if fault == "lost_error":
            answer = broken
        answer = copy.deepcopy(answer)  # as things are now: a key brings the same for ever
        if key in self._keys:
            self._keys[key].answer = answer
            if answer[0] == 400:  # what fails before anything is begun is not kept
                del self._keys[key]
        if fault == "hang":
            self._lock.release()
            self._stopping.wait(HANG_S)
            self._lock.acquire()
        return "silence" if fault in {"lost", "hang"} else answer

    def _pop_fault(self, method: str, path: str) -> Fault | None:
        for index, (fault, where) in enumerate(self._faults):
            if (where and path.startswith(where)) or (not where and method == "POST"):
                del self._faults[index]
                return fault
        return None

    def _repeat(self, stored: Stored, fingerprint: str) -> Answer:
        if stored.fingerprint != fingerprint:
            return ApiError(400, "idempotency_error", None, "Keys can only be used with the same parameters").answer
        if stored.answer is None:
            return ApiError(409, "invalid_request_error", "idempotency_key_in_use", "The key is in use").answer
        return stored.answer

    def _route(self, method: str, path: str, params: dict[str, Any]) -> Answer:
        for verb, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path) if verb == method else None
            if match:
                try:
                    return 200, getattr(self, name)(*match.groups(), params)
                except ApiError as error:
                    return error.answer
        return ApiError(404, "invalid_request_error", "url_invalid", f"Unrecognized request URL: {path}").answer

    # Objects

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


_ROUTES = [
    ("POST", "/v1/customers", "create_customer"),
    ("GET", "/v1/payment_methods/([^/]+)", "get_method"),
    ("POST", "/v1/payment_methods/([^/]+)/detach", "detach_method"),
    ("POST", "/v1/setup_intents", "create_setup"),
    ("GET", "/v1/setup_intents/([^/]+)", "get_setup"),
    ("POST", "/v1/checkout/sessions", "create_session"),
    ("GET", "/v1/checkout/sessions/([^/]+)", "get_session"),
    ("POST", "/v1/payment_intents", "create_intent"),
    ("GET", "/v1/payment_intents", "list_intents"),
    ("GET", "/v1/payment_intents/([^/]+)", "get_intent"),
    ("POST", "/v1/payment_intents/([^/]+)/cancel", "cancel_intent"),
    ("POST", "/v1/refunds", "create_refund"),
    ("GET", "/v1/refunds", "list_refunds"),
    ("GET", "/v1/refunds/([^/]+)", "get_refund"),
    ("GET", "/v1/disputes/([^/]+)", "get_dispute"),
]


def _describe(failure: tuple[str, str | None, str]) -> dict[str, Any]:
    return dict(zip(("code", "decline_code", "message"), failure, strict=True))


def _page(found: list[dict[str, Any]], params: dict[str, Any]) -> dict[str, Any]:
    start = 0
    if "starting_after" in params:
        start = [one["id"] for one in found].index(params["starting_after"]) + 1
    limit = int(params.get("limit", 10))
    return {"object": "list", "data": found[start : start + limit], "has_more": len(found) > start + limit, "url": "/"}


def _parse(text: str) -> dict[str, Any]:
    """Read a form as Stripe does: ``a[b][0]=c`` is ``{"a": {"b": {"0": "c"}}}``."""
    form: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        *path, last = re.findall(r"[^\[\]]+", name)
        place = form
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return form


def _make_handler(simulator: Simulator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve("GET", urlsplit(self.path).query)

        def do_POST(self) -> None:
            self._serve("POST", self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

        def _serve(self, method: str, text: str) -> None:
            path = urlsplit(self.path).path
            if self.headers["Authorization"] != f"Bearer {simulator.secret_key}":
                self._send(ApiError(401, "invalid_request_error", None, "Invalid API Key provided").answer)
                return
            answer = simulator.answer(method, path, _parse(text), self.headers["Idempotency-Key"])
            if answer != "silence":
                self._send(answer)

        def _send(self, answer: Answer) -> None:
            status, body = answer
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler

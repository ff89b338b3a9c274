"""What the payment processor sends, and the page that a card's owner comes back to. Neither carries an API key."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from luthier.api.context import ServicesParam
from luthier.billing.payments import webhooks
from luthier.billing.payments.webhooks import Outcome
from luthier.errors import TooLarge

MAX_BYTES: Final = 1024**2  # Stripe's events are some kilobytes
RETURN_PATH: Final = "/api/billing/return"

_RETURN_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Luthier</title>
<p>Thank you. You may close this page: Luthier asks the payment processor what came of it.</p>
<p><code>luthier billing cards list</code> and <code>luthier billing payments</code> show it.</p>
</html>
"""

router = APIRouter(prefix="/api/billing", tags=["billing"])


class WebhookResponse(BaseModel):
    """That a webhook need not be sent again."""

    object: str = "webhook_receipt"
    outcome: Outcome


async def _read_body(request: Request) -> bytes:
    """Return the body as it was sent, for that is what was signed. Raises TooLarge."""
    body = await request.body()
    if len(body) > MAX_BYTES:
        raise TooLarge(
            "body_too_large", f"the webhook is larger than {MAX_BYTES} bytes", hint="no event of the processor's is"
        )
    return body


@router.post("/webhooks/stripe")
def receive_webhook(
    services: ServicesParam,
    body: Annotated[bytes, Depends(_read_body)],
    stripe_signature: Annotated[str | None, Header()] = None,
) -> WebhookResponse:
    """Take a webhook of Stripe's: 200 when it was dealt with, now or before; 400 for a forged one; 503 to send it again."""
    outcome = webhooks.receive(services.database, services.processor, body, stripe_signature, now=services.clock.now())
    return WebhookResponse(outcome=outcome)


@router.get("/return", response_class=HTMLResponse)
def show_return() -> HTMLResponse:
    """Tell a card's owner, who comes back from the payment processor's page, that they may close it."""
    return HTMLResponse(_RETURN_PAGE)

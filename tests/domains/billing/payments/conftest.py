"""An organization, a Stripe on loopback, and Stripe's own library between them."""

from __future__ import annotations

import pytest

from payments_desk import Desk
from stripe_simulator import Simulator


@pytest.fixture
def stripe():
    """The simulator, running."""
    with Simulator().running() as simulator:
        yield simulator


@pytest.fixture
def desk(database, clock, stripe, home):
    """Everything that a payment needs, on each database."""
    return Desk.open(database, clock, stripe, home)

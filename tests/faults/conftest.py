from __future__ import annotations

import threading

import pytest

from supervision import Workshop


@pytest.fixture
def workshops(tmp_path):
    """Make homes with a fake worker."""
    made = []

    def make(**settings) -> Workshop:
        home = tmp_path / f"home-{len(made)}"
        home.mkdir(mode=0o700)
        made.append(Workshop(home, **settings))
        return made[-1]

    yield make
    for workshop in made:
        workshop.close()


@pytest.fixture
def workshop(workshops):
    """A home with a fake worker."""
    return workshops()


@pytest.fixture
def stop_event():
    """Set: a loop that gets it ends after its first look."""
    event = threading.Event()
    event.set()
    return event

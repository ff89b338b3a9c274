from __future__ import annotations

import pytest
from supervision import Workshop


@pytest.fixture
def workshop(home):
    """A home with a fake worker."""
    workshop = Workshop(home)
    yield workshop
    workshop.close()

"""A service to put an edge in front of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.echo_service import EchoService


@pytest.fixture
async def service(tiny_folder: Path) -> AsyncIterator[EchoService]:
    """Checks in the end that no stream was left running."""
    echo = EchoService(tiny_folder)
    yield echo
    assert not echo.open, "streams were left running"

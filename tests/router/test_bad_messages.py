"""What a router says of messages that are no good."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from helix_mq.errors import FrameError
from tests.cluster import cluster


async def test_of_each_sender_and_fault_the_first_is_told_and_a_full_table_floods_no_log(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster(tiny_folder, {"a": "0:6"}, wait=False) as c:

        def told(who: str) -> int:
            before = len(caplog.records)
            for _ in range(5):
                c.app._count_bad(who, FrameError("no good", reason="kind"))
            said = caplog.records[before:]
            return len([r for r in said if r.levelno >= logging.WARNING])

        assert told("x") == 1
        assert told("x") == 0
        c.app.bad_messages.update({(f"p{number}", "kind"): 1 for number in range(10_000)})
        assert told("y") == 0

"""Rows about to run: pages from the engine, or a refusal, whatever the engine comes to."""

from __future__ import annotations

import logging

from helix_mq.messages.data import RefusedItem
from nodes.batching import Work
from nodes.inbox import Payload
from nodes.steps import StepEngine

log = logging.getLogger(__name__)


def admit(engine: StepEngine, work: Work[Payload], node: str) -> RefusedItem | None:
    """As StepEngine.admit, but a fault of it is a refusal of this row: nothing that a row brings
    may end the step loop, and every other request with it."""
    try:
        return engine.admit(work)
    except Exception:
        log.exception("a row could not be admitted", extra={"request": [work.seq.request]})
        return RefusedItem(*work.seq, "step_failed", f"a row could not be admitted on {node}")

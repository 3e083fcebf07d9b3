"""At the router's start: everything its earlier life accepted and did not end goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from helix_mq.clock import Clock
from helix_mq.errors import HelixError, NotServing
from router import events as ev
from router.journal import Journal
from router.journal_reader import JournalReader
from router.journal_records import StoredRequest
from router.journal_streams import JournaledStreams
from router.restore import event_of
from router.restore_clients import KeptStreams, RunningStream
from router.service import Broken

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keeping:
    """A router's journal, what reads it, and the digest of the model that is served now."""

    journal: Journal
    reader: JournalReader
    model_digest: str


def restore_requests(
    keeping: Keeping,
    clock: Clock,
    streams: JournaledStreams,
    apply: Callable[[ev.Event], None],
) -> KeptStreams:
    """Gives the core what is to go on, and the SDK clients' streams of it to who asks."""
    journal, running = keeping.journal, list[RunningStream]()
    gone_on = 0
    for stored in journal.left:
        opened = stored.opened
        refusal = _refusal(stored, keeping.model_digest)
        if opened.origin.reference is not None:
            stream = streams.restore(
                opened.request, len(opened.generation.prompt_ids), opened.origin.secret
            )
            running.append(RunningStream(opened, stream))
        if refusal is None:
            gone_on += 1
            apply(event_of(stored, journal.life, clock.wall_s()))
        else:
            streams.emit(opened.request, Broken(refusal))
    if journal.left:
        log.info(
            "%d requests of the router's earlier life go on, %d cannot",
            gone_on,
            len(journal.left) - gone_on,
        )
    journal.left = []
    return KeptStreams(running, journal.ended_streams, keeping.reader)


def _refusal(stored: StoredRequest, model_digest: str) -> HelixError | None:
    if stored.opened.model_digest == model_digest:
        return None
    return NotServing("the router was restarted with another model; submit the request again")

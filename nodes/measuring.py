"""A node measures itself before it joins: seconds per layer by batch, for the router's plans.

As few layers as tell the truth, a few seconds, and only once per model, dtype and device: the
result is kept where `helix-mq profile` keeps its own. What cannot be measured costs a line in the
log; the node joins all the same.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

from helix_mq.errors import HelixError
from helix_mq.messages.control import StepTimes
from helix_mq.models.resolve import default_cache
from nodes import profile_cache
from nodes.folder_lock import alone
from nodes.identity import NodeIdentity
from nodes.profile import Profile
from nodes.profile_run import BUSY, measured, subject_of
from nodes.settings import NodeSettings

log = logging.getLogger(__name__)

_MOST_POINTS: Final = 64
"""Per phase, on the wire."""
_LONGEST_WAIT_S: Final = 60.0


def with_times(settings: NodeSettings, identity: NodeIdentity) -> NodeIdentity:
    """The identity with measured times, or without where none can be had. Blocking."""
    try:
        profile = _profile(settings, identity)
    except (HelixError, RuntimeError, MemoryError, OSError) as e:
        log.warning(
            "%s: has not measured itself (%s); the router plans with the catalogue's figures for "
            "its GPU, or by memory",
            settings.name,
            e,
        )
        return identity
    return replace(identity, times=times_of(profile))


def times_of(profile: Profile) -> StepTimes:
    """What goes to the router."""
    tables = profile.tables()
    return StepTimes(tables.prefill[:_MOST_POINTS], tables.decode[:_MOST_POINTS])


def _profile(settings: NodeSettings, identity: NodeIdentity) -> Profile:
    most_s, cache = settings.measure.max_seconds, default_cache()
    subject = subject_of(settings, identity, least_layers=1)
    with alone(_lock_file(cache), _LONGEST_WAIT_S):
        # Nodes that start together on one machine would measure each other; and those alike need
        # only one measurement.
        kept = profile_cache.find(cache, subject.key, most_s)
        if kept is not None:
            log.info("%s: measured before, %s", settings.name, _words(kept))
            return kept
        log.info(
            "%s: measuring this machine with %s, about %.0f s; the result is kept",
            settings.name,
            subject.request.layers,
            most_s + 1,
        )
        profile = measured(subject, most_s, lambda text: log.debug("measuring: %s", text))
        if profile.busy_share <= BUSY:
            profile_cache.keep(cache, subject.key, profile, most_s)
    if profile.busy_share > BUSY:
        log.warning(
            "%s: other programs used %.0f %% of the processors just before, so the times are too "
            "long and are not kept; the next start measures anew",
            settings.name,
            100 * profile.busy_share,
        )
    log.info("%s: measured, %s", settings.name, _words(profile))
    return profile


def _lock_file(cache: Path) -> Path:
    folder = cache / profile_cache.FOLDER
    # Where none can be made nothing is kept either; keep() says so.
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / "measuring.lock"


def _words(profile: Profile) -> str:
    best = max(profile.decode, key=lambda p: p.batch / p.median_s)
    return f"{best.batch / best.median_s:,.0f} tokens/s per layer in decodes of {best.batch}"

"""Settings and figures of the router's core."""

from __future__ import annotations

from dataclasses import dataclass

from helix_mq.token_return import TokenReturn
from router.admission_gate import AdmissionSettings
from router.prefix_settings import PrefixSettings, PrefixStatistics
from router.schedulers_base import Scheduling
from router.speculation import DraftStatistics, SpeculationSettings


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """`expected_output_tokens`: booked per request beside its prompt when it may run longer."""

    max_waiting: int = 1024
    max_context: int = 8192
    expected_output_tokens: int = 256
    default_deadline_s: float = 600.0
    scheduling: Scheduling = Scheduling()
    admission: AdmissionSettings = AdmissionSettings()
    token_return: TokenReturn = "auto"
    prefixes: PrefixSettings = PrefixSettings()
    speculation: SpeculationSettings = SpeculationSettings()


@dataclass(frozen=True, slots=True)
class CoreStatistics:
    waiting: int
    running: int
    flow_tokens_per_s: float
    prefixes: PrefixStatistics = PrefixStatistics()
    drafts: DraftStatistics = DraftStatistics()

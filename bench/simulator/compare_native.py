"""Runs the cases of a comparison in the native simulation: names become placements and workloads.

The one object that goes to the other processes; everything in it is plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from bench.simulator.compare import Case
from bench.simulator.native import Workload, simulate
from bench.simulator.records import Recorder
from bench.simulator.settings import Mode, SimSettings
from bench.simulator.stats import Objectives, Report, report
from bench.traces.workload import open_workload
from helix_mq.errors import ConfigError
from helix_mq.layers import Placement
from router.schedulers_base import Method, Scheduling
from solver.objective import StepTimes
from solver.problem import Problem


@dataclass(frozen=True, slots=True)
class NativeRun:
    """`run(case)` for `compare`: a placement by name, a workload by its specification.

    A case's scheduler and seed replace those of `settings`. Offline, workloads are lengths alone.
    """

    problem: Problem
    placements: Mapping[str, Placement]
    step_times: Mapping[str, StepTimes]
    settings: SimSettings = field(default_factory=SimSettings)
    objectives: Objectives | None = None

    def __call__(self, case: Case) -> Report:
        """ConfigError for a name that means nothing here, or a workload that cannot be read."""
        placement = self.placements.get(case.placement)
        if placement is None:
            known = ", ".join(sorted(self.placements))
            raise ConfigError(
                f"placement={case.placement!r} is not one of {known}", param="placement"
            )
        prefer_near = self.settings.prefer_near
        scheduling = Scheduling(cast(Method, case.scheduler), case.seed, prefer_near)
        settings = replace(
            self.settings,
            scheduler=case.scheduler,
            seed=case.seed,
            core=replace(self.settings.core, scheduling=scheduling),
        )
        source = open_workload(case.workload, case.seed)
        online = settings.mode is Mode.ONLINE
        workload = Workload(source.arrivals() if online else source.lengths())
        recorder = Recorder(settings.warmup_s, settings.duration_s)
        simulate(self.problem, placement, self.step_times, workload, settings, recorder)
        return report(recorder, self.objectives)

"""What members pass with the layers they hold, by the step times they measured. Pure.

The conversion is the planner's, so that a plan of a described cluster and a live one mean the same
by a node's tokens/s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from helix_mq.errors import HelixError
from helix_mq.ids import NodeId
from helix_mq.models.config import ModelConfig
from router.live_problem import LiveMachine, machine_rates
from router.machines import measured
from router.membership import Member


class LiveRates:
    """Tables by node, made anew only when other machines than before are asked for."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._machines: tuple[LiveMachine, ...] = ()
        self._tables: Mapping[NodeId, tuple[float, ...]] = {}

    def of(self, members: Sequence[Member]) -> Mapping[NodeId, float]:
        """Tokens/s of those that have measured themselves, with the layers they hold."""
        machines = []
        for m in members:
            times = measured(m)
            if times is not None:
                machines.append(
                    LiveMachine(
                        m.name,
                        m.register.memory_bytes,
                        m.form.dtype_bytes,
                        times,
                        quantise=m.form.quantise,
                    )
                )
        if tuple(machines) != self._machines:
            self._machines = tuple(machines)
            try:
                self._tables = machine_rates(self._config, machines) if machines else {}
            except HelixError:
                # A measurement that makes no sense counts as none.
                self._tables = {}
        rates: dict[NodeId, float] = {}
        for m in members:
            table = self._tables.get(m.name, ())
            if m.layers is not None and len(m.layers) <= len(table):
                rates[m.name] = table[len(m.layers) - 1]
        return rates

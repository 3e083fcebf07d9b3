"""Members as machines that the planner can place layers on. Pure.

A member's own measurements come first, the catalogue's for its GPU where it has none. A machine
that neither knows cannot be planned for.
"""

from __future__ import annotations

import re
from typing import Final

from helix_mq.errors import ConfigError
from helix_mq.models.config import ModelConfig
from router.live_problem import LiveMachine
from router.membership import Member
from solver.catalogue import Machine, UnknownMachine, machine
from solver.objective import StepTimes
from solver.roofline import step_times

_DEVICE: Final = re.compile(r"cuda:\d+ (.+)")
_FORM: Final = re.compile(r"[ -](?:SXM\d*|PCIE|NVL|HBM\w*|OEM)\b", re.IGNORECASE)
_MEMORY: Final = re.compile(r" (\d+)GB$", re.IGNORECASE)


def machine_of(member: Member, config: ModelConfig, slowdown: float) -> LiveMachine | None:
    """The member for the planner; None where nothing is known of its speed."""
    times = measured(member)
    if times is None:
        known = catalogued(member.register.device)
        if known is None:
            return None
        times = step_times(config, known)
    memory, form = member.register.memory_bytes, member.form
    return LiveMachine(member.name, memory, form.dtype_bytes, times, slowdown, form.quantise)


def measured(member: Member) -> StepTimes | None:
    """What the member has measured; None without it, or where it makes no sense."""
    times = member.register.times
    if times is None:
        return None
    try:
        return StepTimes(times.prefill, times.decode)
    except ConfigError:
        return None


def catalogued(device: str) -> Machine | None:
    """The GPU that a driver names: `cuda:0 NVIDIA A100-SXM4-80GB` is an A100-80."""
    match = _DEVICE.fullmatch(device)
    if match is None:
        return None
    name = _FORM.sub("", match[1])
    for spelling in (name, _MEMORY.sub(r"-\1", name), _MEMORY.sub("", name)):
        try:
            return machine(spelling)
        except UnknownMachine:
            continue
    return None

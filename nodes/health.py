"""What a node tells the service manager of itself; see helix_mq.notify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helix_mq.layers import LayerRange


@dataclass(frozen=True, slots=True)
class NodeState:
    """`waits_to_leave`: it has asked the router to be let go. `device_busy_s`: how long the job
    that is on the device has been there."""

    router: str
    connected: bool
    waits_to_leave: bool
    serving: Sequence[LayerRange]
    loading: LayerRange | None
    open_requests: int
    device_busy_s: float


def status_text(state: NodeState) -> str:
    parts = []
    if state.serving:
        requests = f"{state.open_requests} request{'' if state.open_requests == 1 else 's'}"
        parts.append(f"serving {' and '.join(map(str, state.serving))}, {requests}")
    if state.loading is not None:
        parts.append(f"loading {state.loading}")
    if not state.connected:
        parts.append(f"waiting for the router at {state.router}")
    elif state.waits_to_leave:
        parts.append("waiting for the router to let it go")
    elif not parts:
        parts.append("waiting for layers from the router")
    return "; ".join(parts)


def stuck_text(state: NodeState, stuck_after_s: float) -> str:
    """Empty as long as the device thread gets on."""
    if state.device_busy_s < stuck_after_s:
        return ""
    return f"the device has been at one job for more than {stuck_after_s:.0f} s"

"""What the operating pages show, as frozen structs: `GET /v1/helix/cluster` and `.../requests`.

docs/api.md says what the fields are. Fields are added at the end and never change their meaning:
consoles and scripts of other versions read them.
"""

from __future__ import annotations

import msgspec

from router.happenings import Happening
from router.recent import Percentiles, RecentSlot


class NodePicture(msgspec.Struct, frozen=True):
    node: str
    state: str
    layers: str
    """`0-9`, empty without any."""
    next_layers: str
    """What it is loading for the next placement."""
    epoch: int
    incarnation: int
    device: str
    leaving: bool
    kind: str = ""
    """Of its device, short: `T4`, `CPU node`."""
    region: str = ""
    first_layer: int | None = None
    end_layer: int | None = None
    """Half-open, as everywhere between programs; `layers` is for people."""
    suspect: str = ""
    """Why new requests avoid it; empty if they do not."""
    failure: str = ""
    """Why it could not load its layers."""
    heard_s: float = 0.0
    """Seconds since it was last heard."""
    memory_bytes: int = 0
    kv_used_pages: int = 0
    kv_total_pages: int = 0
    page_tokens: int = 0
    """Tokens of one layer that a page holds; 0 while it holds no layers."""
    crossing_requests: int = 0
    """Requests whose route goes through it."""
    open_requests: int = 0
    """Sequences with pages on it, by its own count."""
    waiting_rows: int = 0
    waiting_tokens: int = 0
    tokens_per_s: float = 0.0
    """Through its layers in the last seconds, prompts and output."""
    flow_tokens_per_s: float = 0.0
    """Its part of the max flow."""
    rate_tokens_per_s: float = 0.0
    """What the flow takes it to pass at most."""
    busy_share: float = 0.0
    """Of the last seconds, spent in steps."""
    step_s: float = 0.0
    """Mean of the last seconds' steps; 0 without any."""
    expected_step_s: float = 0.0
    """What they should have taken by its own measurements; 0 where it has none."""
    slowdown: float = 1.0
    """That the flow is computed with."""
    caps: bool = False
    """It is part of what caps the flow."""


class LinkPicture(msgspec.Struct, frozen=True):
    """A link that carries flow or bytes, or is in trouble; `@router` may be an end."""

    sender: str
    receiver: str
    flow_tokens_per_s: float = 0.0
    capacity_tokens_per_s: float | None = None
    """That the flow counts with; null where nobody has measured it: it limits nothing."""
    bytes_per_s: float = 0.0
    """Sent in the last seconds."""
    acknowledged_bytes_per_s: float = 0.0
    """The best at which its bytes were acknowledged lately."""
    probed_bytes_per_s: float = 0.0
    """What it can carry, by probes; 0 where none were lately."""
    round_trip_s: float = 0.0
    backlog_bytes: int = 0
    """Waiting for credit or their turn."""
    blocked_share: float = 0.0
    """Of the last seconds, in which frames waited for the receiver's credit."""
    down_s: float = 0.0
    closed: bool = False
    """No requests go over it for now."""
    caps: bool = False


class Bottleneck(msgspec.Struct, frozen=True):
    """The min cut of the flow. `text` is a sentence without its full stop; all is empty where
    there is no flow."""

    text: str = ""
    tokens_per_s: float = 0.0
    nodes: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


class RouterPicture(msgspec.Struct, frozen=True):
    """`admitted` and `refused` count since the start, `refused_by` the codes of refusals; the
    percentiles and `history` are of the last `over_s` seconds."""

    version: str
    model: str
    num_layers: int
    now_s: float
    """Unix time of this picture, by the router's clock."""
    uptime_s: float
    waiting: int
    running: int
    max_waiting: int
    admitted: int
    refused: int
    refused_by: dict[str, int]
    output_tokens_per_s: float
    over_s: float
    ttft: Percentiles
    itl: Percentiles
    history: tuple[RecentSlot, ...]
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of those drafted since the start, what turned out to be the next tokens."""


class ClusterPicture(msgspec.Struct, frozen=True):
    """`doing`: in words, empty when nothing is under way. `verdict`: of the last search."""

    serving: bool
    reason: str
    epoch: int
    flow_tokens_per_s: float
    doing: str
    verdict: str
    searches: int
    nodes: tuple[NodePicture, ...]
    links: tuple[LinkPicture, ...] = ()
    router: RouterPicture | None = None
    bottleneck: Bottleneck = Bottleneck()
    happenings: tuple[Happening, ...] = ()
    """The last ones, oldest first."""


class HopPicture(msgspec.Struct, frozen=True):
    node: str
    layers: str


class RequestPicture(msgspec.Struct, frozen=True):
    """A request that has not ended. `id` finds its trace; the secret half of its name, with which
    clients fetch it, is not shown."""

    id: str
    state: str
    """queued, prefilling (its first token on this route has not come), decoding."""
    age_s: float
    deadline_in_s: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    route: tuple[HopPicture, ...]
    at: str
    """The node that has it now, where that is known: its route has but one."""
    since_token_s: float
    """Since its last row was sent: what the token under way has taken so far; 0 while queued."""
    reroutes: int
    background: bool
    owner: str
    """Of its API or client key, the beginning of a digest or a name."""


class RequestsPicture(msgspec.Struct, frozen=True):
    """The longest-lived `requests`, 200 at most, of `total`."""

    total: int
    requests: tuple[RequestPicture, ...]

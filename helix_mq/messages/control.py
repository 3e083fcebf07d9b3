"""Node <-> router: who is here, what each node holds, how it is doing."""

from __future__ import annotations

from typing import Annotated

import msgspec

from helix_mq.packing import U31, U63, Name, Rate, Seconds, Text

Endpoint = Annotated[str, msgspec.Meta(max_length=256)]
PublicKey = Annotated[str, msgspec.Meta(max_length=40)]
Region = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[A-Za-z0-9._-]*\Z")]
Digest = Annotated[str, msgspec.Meta(max_length=128)]
Feature = Annotated[str, msgspec.Meta(max_length=32)]
DeviceId = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[A-Za-z0-9._-]*\Z")]


class SliceRef(msgspec.Struct, array_like=True, frozen=True):
    """A slice a node holds, loaded: epoch it was assigned under, half-open layer range."""

    epoch: U63
    first: U31
    end: U31


StepPoint = tuple[
    Annotated[float, msgspec.Meta(gt=0, le=1e9)], Annotated[float, msgspec.Meta(gt=0, le=1e6)]
]
"""(tokens or requests in the batch, seconds per layer)."""
StepPoints = Annotated[tuple[StepPoint, ...], msgspec.Meta(min_length=2, max_length=64)]


class StepTimes(msgspec.Struct, array_like=True, frozen=True):
    """Measured seconds per layer of a step, batches strictly rising; see `helix_mq.step_tables`.

    `prefill` counts tokens in the batch, `decode` requests.
    """

    prefill: StepPoints
    decode: StepPoints


class Register(msgspec.Struct, array_like=True, frozen=True):
    """First message of a node, and again after every reconnect."""

    node: Name
    incarnation: U63
    """Random per process start: a node that restarts is another one under the same name."""
    data_endpoint: Endpoint
    """Where peers and the router connect to, e.g. `tcp://10.0.0.7:7101`."""
    data_public_key: PublicKey
    """CURVE key of the data socket (z85), empty on plain sockets."""
    device: Text
    """For people: `cuda NVIDIA H200`, `cpu AMD EPYC (2 threads)`."""
    memory_bytes: U63
    """What the node may spend on weights and KV cache together."""
    dtype_bytes: Annotated[int, msgspec.Meta(ge=1, le=8)]
    """Bytes per KV element, and per weight that is not quantised, in the compute dtype the node has
    chosen."""
    model_digest: Digest
    """Digest of the model's config: a node with other weights must not join."""
    version: Text
    holding: SliceRef | None = None
    """The newest slice it holds, loaded and serving."""
    heartbeat_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 1.0
    """How often it will be heard from."""
    times: StepTimes | None = None
    """What its device has measured with this model; None where it has not."""
    region: Region = ""
    """Where it stands, by its own settings; empty where they do not say."""
    features: Annotated[tuple[Feature, ...], msgspec.Meta(max_length=64)] = ()
    """What its program can do that older ones cannot; the router asks no more of it than that."""
    quantise: Annotated[str, msgspec.Meta(max_length=16)] = "none"
    """Bits of its weights: a `helix_mq.models.quantisation.Quantisation`."""
    device_id: DeviceId = ""
    """Nodes that say the same compute on one device; empty where no other does."""


class RegisterAgain(msgspec.Struct, array_like=True, frozen=True):
    """The router does not know the sender (it restarted): register once more."""

    reason: Text


class Rejected(msgspec.Struct, array_like=True, frozen=True):
    """The router refuses a registration; `remedy` says what to do about it."""

    code: Text
    reason: Text


class Assign(msgspec.Struct, array_like=True, frozen=True):
    """Load these layers, then say ready. `depth` is the number of stages a route passes.

    What the node holds under other epochs stays loaded and goes on serving them, until a Retain
    leaves them out; with the very layers it holds already there is nothing to load.
    """

    epoch: U63
    first: U31
    end: U31
    depth: Annotated[int, msgspec.Meta(ge=1, le=1024)]


class Retain(msgspec.Struct, array_like=True, frozen=True):
    """Only these epochs are served from now on: what the node holds for others alone is freed, and
    rows of others are refused. Epochs that the node does not know change nothing."""

    epochs: Annotated[tuple[U63, ...], msgspec.Meta(max_length=16)]


class Ready(msgspec.Struct, array_like=True, frozen=True):
    """The slice is loaded and warm. Said again when its KV pool has grown since."""

    epoch: U63
    first: U31
    end: U31
    kv_pages: U63
    """Layer-pages in the KV pool: one holds `page_tokens` tokens of one layer."""
    page_tokens: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    load_s: Seconds
    layer_tokens_per_s: Rate
    """Measured at warm-up: tokens of one layer per second, decode and prefill mixed."""
    notes: Text
    """In words: compute dtype and attention backend chosen, and why."""
    held_bytes: U63 = 0
    """Weights and KV pool of this slice."""


class AssignFailed(msgspec.Struct, array_like=True, frozen=True):
    epoch: U63
    code: Text
    reason: Text


class LinkReport(msgspec.Struct, array_like=True, frozen=True):
    """One outgoing data link as its sender sees it."""

    peer: Name
    sent_bytes: U63
    sent_frames: U63
    backlog_bytes: U63
    blocked_s: Seconds
    down_s: Seconds = 0.0
    """For how long it has been unconnected; 0 while it is connected."""
    bytes_per_s: Rate = 0.0
    """At which its bytes were acknowledged lately, at best: of a link with little to send that says
    how little there was. 0 where nothing was."""
    round_trip_s: Seconds = 0.0
    """Least measured lately, there and back; 0 where it is not known."""
    probed_bytes_per_s: Rate = 0.0
    """What it can carry, by trains of padding sent back to back; 0 where none were lately."""


class Heartbeat(msgspec.Struct, array_like=True, frozen=True):
    """Sent every heartbeat interval; counters are cumulative since the process started."""

    node: Name
    incarnation: U63
    sequence: U63
    epoch: U63
    open_requests: U31
    waiting_rows: U31
    waiting_tokens: U31
    kv_free_pages: U63
    kv_total_pages: U63
    steps: U63
    step_s: Seconds
    """Cumulative seconds the device spent in steps."""
    tokens: U63
    """Cumulative tokens run through the slice (each layer range counted once)."""
    layer_tokens: U63
    """Cumulative tokens x layers run."""
    bad_messages: U63
    links: Annotated[tuple[LinkReport, ...], msgspec.Meta(max_length=4096)]
    expected_s: Seconds = 0.0
    """What the steps counted in `step_s` should have taken by the node's own measurements; 0 where
    it has none. The ratio of the two tells a node that has become slow from one that has more to
    do."""


class PhaseTimes(msgspec.Struct, array_like=True, frozen=True):
    """Of a request's prompt, or of its decodes, on one node: in how many steps, and the seconds in
    sum. What is counted here never overlaps."""

    steps: U31 = 0
    tokens: U31 = 0
    queue_s: Seconds = 0.0
    """From a row's arrival, or from its sequence's step before if that was later, to its step."""
    compute_s: Seconds = 0.0
    """Of the steps, other requests' rows in them included."""
    serialise_s: Seconds = 0.0
    """From the results on the host to frames handed to their links."""


class HopTrace(msgspec.Struct, array_like=True, frozen=True):
    """What one request has taken on one node under one attempt."""

    request: U63
    attempt: U31
    began_ms: U63
    """Unix time, by the node's clock, of its first row's arrival."""
    span_s: Seconds
    """From then to the end of its last step."""
    prefill: PhaseTimes
    decode: PhaseTimes
    open: bool
    """It may go on."""


class Traces(msgspec.Struct, array_like=True, frozen=True):
    """Node -> router: of requests that have left the node, or the answer to a TraceWanted, whose
    number it carries (0: to none)."""

    items: Annotated[tuple[HopTrace, ...], msgspec.Meta(max_length=512)]
    number: U63 = 0


class TraceWanted(msgspec.Struct, array_like=True, frozen=True):
    """Router -> node: say at once what is known of this request."""

    request: U63
    number: U63


class Peer(msgspec.Struct, array_like=True, frozen=True):
    node: Name
    incarnation: U63
    endpoint: Endpoint
    public_key: PublicKey
    activations: Annotated[str, msgspec.Meta(max_length=16)] = ""
    """Wire dtype of rows to this peer; empty for the sender's compute dtype."""


class Peers(msgspec.Struct, array_like=True, frozen=True):
    """Everyone a node may exchange frames with; replaces the previous list whole."""

    epoch: U63
    peers: Annotated[tuple[Peer, ...], msgspec.Meta(max_length=4096)]


class Leave(msgspec.Struct, array_like=True, frozen=True):
    """A node says goodbye, or the router tells it to go."""

    node: Name
    incarnation: U63
    reason: Text


class Drain(msgspec.Struct, array_like=True, frozen=True):
    """The node asks for its requests to be moved away before it leaves."""

    node: Name
    incarnation: U63

"""What is on the wire, as frozen structs; one module per conversation.

`control`  node <-> router: membership, assignments, heartbeats.
`data`     along a route: activation frames, tokens, releases, credit.
`client`   SDK <-> router: submissions and streams.

A message is `[version, kind][msgpack header][tensor buffer ...]`; `KINDS` maps the kind byte to the
struct of the header. Only `frames` turns messages into multipart bytes and back.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from helix_mq.messages import client, control, data

WIRE_VERSION = 1


class Kind(IntEnum):
    """The second byte of every message. Numbers are never reused."""

    REGISTER = 1
    REGISTER_AGAIN = 2
    ASSIGN = 3
    READY = 4
    ASSIGN_FAILED = 5
    HEARTBEAT = 6
    PEERS = 7
    LEAVE = 8
    DRAIN = 9
    REJECTED = 10
    RETAIN = 11
    TRACES = 12
    TRACE_WANTED = 13

    FRAME = 32
    TOKENS = 33
    REFUSED = 34
    RELEASE = 35
    LINK_HELLO = 36
    GRANT = 37
    LINK_PROBE = 38
    LINK_ECHO = 39

    SUBMIT = 64
    ACCEPTED = 65
    DELTA = 66
    DONE = 67
    FAILED = 68
    CANCEL = 69
    RESUME = 70
    KEEPALIVE = 71
    MODELS = 72


KINDS: dict[Kind, type[msgspec.Struct]] = {
    Kind.REGISTER: control.Register,
    Kind.REGISTER_AGAIN: control.RegisterAgain,
    Kind.ASSIGN: control.Assign,
    Kind.READY: control.Ready,
    Kind.ASSIGN_FAILED: control.AssignFailed,
    Kind.HEARTBEAT: control.Heartbeat,
    Kind.PEERS: control.Peers,
    Kind.LEAVE: control.Leave,
    Kind.DRAIN: control.Drain,
    Kind.REJECTED: control.Rejected,
    Kind.RETAIN: control.Retain,
    Kind.TRACES: control.Traces,
    Kind.TRACE_WANTED: control.TraceWanted,
    Kind.FRAME: data.FrameHeader,
    Kind.TOKENS: data.Tokens,
    Kind.REFUSED: data.Refused,
    Kind.RELEASE: data.Release,
    Kind.LINK_HELLO: data.LinkHello,
    Kind.GRANT: data.Grant,
    Kind.LINK_PROBE: data.LinkProbe,
    Kind.LINK_ECHO: data.LinkEcho,
    Kind.SUBMIT: client.Submit,
    Kind.ACCEPTED: client.Accepted,
    Kind.DELTA: client.Delta,
    Kind.DONE: client.Done,
    Kind.FAILED: client.Failed,
    Kind.CANCEL: client.Cancel,
    Kind.RESUME: client.Resume,
    Kind.KEEPALIVE: client.Keepalive,
    Kind.MODELS: client.Models,
}

KIND_OF: dict[type[msgspec.Struct], Kind] = {struct: kind for kind, struct in KINDS.items()}

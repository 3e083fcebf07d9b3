"""The wire: what is encoded comes back equal; whatever else arrives is a FrameError, no crash."""

from __future__ import annotations

import random

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_mq.errors import FrameError
from helix_mq.frames import Message, decode, encode, frame_bytes, pack_route
from helix_mq.ids import NodeId
from helix_mq.layers import Hop, LayerRange, Route
from helix_mq.messages import KINDS, WIRE_VERSION, Kind, client, control, data
from helix_mq.sampling import SamplingParams

ROUTE = Route((Hop(NodeId("a"), LayerRange(0, 3)), Hop(NodeId("b-1.x"), LayerRange(3, 8))))


def token_frame(*, history: bool = False) -> tuple[data.FrameHeader, list[memoryview]]:
    spec = data.SampleSpec(SamplingParams(seed=7, repetition_penalty=1.1), 3, 3 if history else 0)
    row = data.Row(5, 0, 0, 3, 0, 0, data.SAMPLE, 99, spec)
    header = data.FrameHeader(1, "@router", "int32", 1, (row,), (pack_route(ROUTE),))
    ids = memoryview(np.array([1, 2, 3], np.int32)).cast("B")
    return header, [ids, ids] if history else [ids]


def activation_frame() -> tuple[data.FrameHeader, list[memoryview]]:
    rows = (data.Row(5, 0, 0, 2, 0, 1, 0, 0), data.Row(6, 2, 40, 1, 0, 1, data.SAMPLE, 0))
    header = data.FrameHeader(1, "a", "float32", 4, rows, (pack_route(ROUTE),))
    return header, [memoryview(np.arange(12, dtype=np.float32)).cast("B")]


def drafts_frame(**fields: object) -> tuple[data.FrameHeader, list[memoryview]]:
    """A decode with two drafts on its way to a second hop, as activations."""
    flags = data.SAMPLE | data.VERIFY
    row = data.Row(6, 2, 40, 3, 0, 1, flags, 0, drafts=(7, 8))
    row = msgspec.structs.replace(row, **fields)
    header = data.FrameHeader(1, "a", "float32", 4, (row,), (pack_route(ROUTE),))
    return header, [memoryview(np.zeros(4 * row.count, np.float32)).cast("B")]


EXAMPLES: list[msgspec.Struct] = [
    control.Register("n", 1, "tcp://h:1", "", "cpu", 1 << 30, 4, "d", "0.1", None),
    control.Register(
        "n", 1, "tcp://h:1", "k", "cpu", 1 << 30, 2, "d", "0.1", control.SliceRef(1, 0, 4)
    ),
    control.Register(
        "n",
        1,
        "tcp://h:1",
        "k",
        "cpu",
        1 << 30,
        2,
        "d",
        "0.1",
        heartbeat_s=0.5,
        times=control.StepTimes(((1.0, 1e-3), (16.0, 4e-3)), ((1.0, 1e-3), (2.0, 1.5e-3))),
        region="eu-west",
    ),
    control.Assign(1, 0, 4, 3),
    control.Retain((1, 2)),
    control.Ready(1, 0, 4, 100, 16, 1.5, 1e4, "notes"),
    control.AssignFailed(1, "memory", "too little"),
    control.Heartbeat(
        "n",
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        0.5,
        10,
        11,
        0,
        (control.LinkReport("p", 1, 2, 3, 0.1, 0.0, 1e6, 0.04),),
        0.4,
    ),
    control.Peers(1, (control.Peer("n", 1, "tcp://h:1", ""),)),
    control.Leave("n", 1, "bye"),
    control.Drain("n", 1),
    control.Rejected("code", "why"),
    control.RegisterAgain("why"),
    control.Traces(
        (
            control.HopTrace(
                5,
                1,
                1_700_000_000_000,
                0.5,
                control.PhaseTimes(2, 90, 0.1, 0.2, 0.01),
                control.PhaseTimes(),
                True,
            ),
        ),
        7,
    ),
    control.TraceWanted(5, 7),
    data.Tokens(1, "n", (data.TokenItem(1, 0, 5, 7, -0.5, (data.TopLogprob(7, -0.5),)),)),
    data.Tokens(1, "n", (data.TokenItem(1, 0, 5, 7, more=True), data.TokenItem(1, 0, 6, 8))),
    data.Refused(1, "n", (data.RefusedItem(1, 0, "kv_exhausted", "full"),)),
    data.Release((data.ReleaseItem(1, 0),)),
    data.LinkHello("n", 1, 2),
    data.Grant("n", 1, 1 << 40),
    data.LinkProbe(2, 3),
    data.LinkEcho(2, 3),
    client.Submit(1, "m", "hi", None, None, SamplingParams(), True, False, ("\n",), 3.0),
    client.Submit(
        1,
        "m",
        None,
        (client.ChatMessage("user", "hé"),),
        None,
        SamplingParams(),
        True,
        True,
        (),
        None,
    ),
    client.Accepted(1, "r", "m", 3),
    client.Delta(1, 0, 5, "x", client.TokenLogprob(5, "x", -0.1, ())),
    client.Done(1, "stop", 3, 4, client.Timings(0.0, 0.1, 0.2, 0)),
    client.Failed(1, "code", "text", None, 429, 1.0),
    client.Cancel(1),
    client.Resume(1, "r", 5),
    client.Keepalive(1),
    client.Models(("m",), True),
]


def flat(message: Message) -> bytes:
    return b"".join(bytes(b) for b in message.buffers)


@pytest.mark.parametrize("header", EXAMPLES, ids=lambda h: type(h).__name__)
def test_every_message_comes_back_equal(header: msgspec.Struct) -> None:
    message = decode(encode(header))
    assert message.header == header
    assert KINDS[message.kind] is type(header)


@pytest.mark.parametrize("header", EXAMPLES, ids=lambda h: type(h).__name__)
def test_headers_are_the_bytes_msgpack_makes(header: msgspec.Struct) -> None:
    plain = msgspec.to_builtins(header, builtin_types=(bytes,))
    assert encode(header)[1] == msgpack.packb(plain, use_bin_type=True)


def test_every_kind_has_an_example() -> None:
    covered = {type(h) for h in EXAMPLES} | {data.FrameHeader}
    assert covered == set(KINDS.values())


@pytest.mark.parametrize("history", [False, True])
def test_frames_come_back_with_the_same_buffers(history: bool) -> None:
    header, buffers = token_frame(history=history)
    message = decode(encode(header, buffers))
    assert message.header == header
    assert flat(message) == b"".join(bytes(b) for b in buffers)


def test_buffers_are_not_copied() -> None:
    header, buffers = activation_frame()
    parts = encode(header, buffers)
    assert parts[2] is buffers[0]
    message = decode(parts)
    assert message.buffers[0].obj is buffers[0].obj
    assert frame_bytes(parts) == sum(len(bytes(p)) for p in parts)


def test_drafts_come_back_equal() -> None:
    header, buffers = drafts_frame()
    assert decode(encode(header, buffers)).header == header


@pytest.mark.parametrize(
    "fields",
    [
        {"flags": data.VERIFY},
        {"flags": data.SAMPLE},
        {"position": 0},
        {"count": 1, "drafts": ()},
        {"count": 1},
        {"count": 4},
        {"drafts": ()},
        {"count": 2 + data.MAX_DRAFTS, "drafts": tuple(range(data.MAX_DRAFTS))},
        {"count": 5000},
    ],
)
def test_drafts_that_are_none_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(FrameError) as caught:
        decode(encode(*drafts_frame(**fields)))
    assert caught.value.reason == "drafts"


def test_a_first_hop_has_drafts_among_its_token_ids_only() -> None:
    row = data.Row(6, 2, 40, 3, 0, 0, data.SAMPLE | data.VERIFY, 0)
    ids = [memoryview(np.array([1, 2, 3], np.int32)).cast("B")]
    header = data.FrameHeader(1, "@router", "int32", 1, (row,), (pack_route(ROUTE),))
    assert decode(encode(header, ids)).header == header
    with pytest.raises(FrameError) as caught:
        decode(encode(row_changed(header, drafts=(2, 3)), ids))
    assert caught.value.reason == "drafts"


def test_more_drafts_than_the_wire_has_room_for() -> None:
    with pytest.raises(FrameError) as caught:
        decode(encode(*drafts_frame(drafts=tuple(range(data.MAX_DRAFTS + 1)))))
    assert caught.value.reason == "bad_field"


def changed(header: data.FrameHeader, **fields: object) -> data.FrameHeader:
    return msgspec.structs.replace(header, **fields)


def row_changed(header: data.FrameHeader, **fields: object) -> data.FrameHeader:
    row = msgspec.structs.replace(header.rows[0], **fields)
    return changed(header, rows=(row, *header.rows[1:]))


def test_what_does_not_fit_together_is_refused_with_a_reason() -> None:
    tokens, ids = token_frame()
    acts, floats = activation_frame()
    cases: list[tuple[data.FrameHeader, list[memoryview], str]] = [
        (changed(acts, dtype="int4"), floats, "dtype"),
        (changed(acts, dtype="int8"), floats, "length"),
        (changed(acts, dtype="bfloat16"), floats, "length"),
        (changed(acts, width=5), floats, "length"),
        (acts, [floats[0][:-1]], "length"),
        (acts, [*floats, floats[0]], "length"),
        (acts, [], "length"),
        (row_changed(acts, route=1), floats, "route_index"),
        (row_changed(acts, hop=2), floats, "route_index"),
        (row_changed(acts, hop=0), floats, "dtype"),
        (row_changed(tokens, hop=1), ids, "dtype"),
        (changed(acts, routes=(b"\x93", *acts.routes[1:])), floats, "route"),
        (row_changed(tokens, spec=data.SampleSpec(SamplingParams(), 3, 2)), ids, "history"),
        (row_changed(acts, count=data.MAX_FRAME_TOKENS), floats, "frame_tokens"),
    ]
    for header, buffers, reason in cases:
        with pytest.raises(FrameError) as caught:
            decode(encode(header, buffers))
        assert caught.value.reason == reason, caught.value


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "parts"),
        ([b"\x01\x01"], "parts"),
        ([b"\x01\x01", b"", b"", b"", b""], "parts"),
        ([b"", b"\x90"], "no_version"),
        ([b"\x01\x01\x00", b"\x90"], "no_version"),
        ([bytes((WIRE_VERSION + 1, Kind.CANCEL)), b"\x91\x01"], "version"),
        ([bytes((WIRE_VERSION, 255)), b"\x91\x01"], "unknown_kind"),
        ([bytes((WIRE_VERSION, Kind.CANCEL)), b"\xc1"], "not_msgpack"),
        ([bytes((WIRE_VERSION, Kind.CANCEL)), b"\x92\x01" + b"\x91" * 5000], "not_msgpack"),
        ([bytes((WIRE_VERSION, Kind.CANCEL)), b"\x91\x01zz"], "not_msgpack"),
        ([bytes((WIRE_VERSION, Kind.CANCEL)), b"\x91\xff"], "bad_field"),
        ([bytes((WIRE_VERSION, Kind.CANCEL)), b"\x91" * 5000], "bad_field"),
        ([bytes((WIRE_VERSION, Kind.CANCEL)), b"\xdd\x7f\xff\xff\xff\x01"], "not_msgpack"),
        ([bytes((WIRE_VERSION, Kind.REJECTED)), b"\x92\xa2\xff\xfe\xa1a"], "not_msgpack"),
        ([bytes((WIRE_VERSION, Kind.REJECTED)), b"\x92\xa1a\xc7\x01\x05a"], "bad_field"),
        ([bytes((WIRE_VERSION, Kind.CANCEL)), b"\x90"], "bad_field"),
        ([bytes((WIRE_VERSION, Kind.CANCEL)), b"\x91\x01", b"extra"], "stray_buffer"),
    ],
)
def test_envelopes(parts: list[bytes], reason: str) -> None:
    with pytest.raises(FrameError) as caught:
        decode(parts)
    assert caught.value.reason == reason


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=30,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(Kind)), PLAIN, st.lists(st.binary(max_size=64), max_size=3))
def test_any_msgpack_gives_a_message_or_a_frame_error(
    kind: Kind, plain: object, buffers: list[bytes]
) -> None:
    parts = [bytes((WIRE_VERSION, kind)), msgpack.packb(plain), *buffers]
    try:
        message = decode(parts)
    except FrameError as e:
        assert e.reason
    else:
        assert isinstance(message.header, KINDS[kind])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_any_bytes_give_a_message_or_a_frame_error(parts: list[bytes]) -> None:
    try:
        decode(parts)
    except FrameError as e:
        assert e.reason


def test_100_000_mutated_messages_give_a_message_or_a_frame_error() -> None:
    """Bytes of real messages, flipped, cut, doubled and spliced; seeded, so that it repeats."""
    rng = random.Random(20_240)
    originals = [[bytes(p) for p in encode(h)] for h in EXAMPLES]
    frames = [token_frame(history=history) for history in (False, True)]
    originals += [[bytes(p) for p in encode(*frame)] for frame in frames]
    originals += [[bytes(p) for p in encode(*activation_frame())]] * 5
    outcomes = {"message": 0, "error": 0}
    for _ in range(100_000):
        parts = list(rng.choice(originals))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(parts))
            parts[at] = mutate(rng, parts[at])
        if rng.random() < 0.05:
            parts.insert(rng.randrange(len(parts) + 1), rng.randbytes(rng.randint(0, 40)))
        try:
            message = decode(parts)
        except FrameError as e:
            assert e.reason
            outcomes["error"] += 1
        else:
            assert isinstance(message.header, msgspec.Struct)
            outcomes["message"] += 1
    assert min(outcomes.values()) > 1_000, outcomes


def mutate(rng: random.Random, part: bytes) -> bytes:
    changed_part = bytearray(part)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(changed_part) + 1)
        match rng.randrange(4):
            case 0 if at < len(changed_part):
                changed_part[at] = rng.randrange(256)
            case 1:
                del changed_part[at : at + rng.randint(1, 8)]
            case 2:
                changed_part[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                changed_part[at:at] = changed_part[at : at + 8]
    return bytes(changed_part)

"""The SDK's pure parts: stream state under loss and repetition, errors there and back, laziness."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import helix_mq
from helix_mq import errors
from helix_mq.clock import VirtualClock
from helix_mq.errors import (
    CallerError,
    CapacityError,
    ConfigError,
    HelixError,
    InvalidRequest,
    KvExhausted,
    LocalError,
    PeerError,
)
from helix_mq.messages import client as wire
from helix_mq.packing import pack, unpack
from helix_mq.sdk.errors import failed, rebuilt
from helix_mq.sdk.options import ClientOptions
from helix_mq.sdk.stream_state import StreamState
from helix_mq.sdk.streams import Streams
from helix_mq.sdk.submission import submit_prompt

SUBMIT = submit_prompt(1, "x", {"max_tokens": 8})


def delta(index: int) -> wire.Delta:
    return wire.Delta(1, index, 100 + index, f"<{index}>")


def done(tokens: int) -> wire.Done:
    return wire.Done(1, "length", 3, tokens, wire.Timings(0.1, 0.2, 0.3, 1))


def drain(state: StreamState) -> list[int]:
    indexes = []
    while (token := state.take()) is not None:
        indexes.append(token.index)
    return indexes


@given(
    total=st.integers(1, 12),
    lost=st.lists(st.booleans(), max_size=40),
    overlaps=st.lists(st.integers(0, 12), max_size=40),
)
def test_lost_and_repeated_deltas_come_out_once_and_in_order(
    total: int, lost: list[bool], overlaps: list[int]
) -> None:
    """The router sends from where it was asked to; some messages get lost, some come again."""
    state = StreamState(SUBMIT, 0.0)
    cursor, got, losing, overlapping = 0, [], iter(lost), iter(overlaps)
    while not state.ended:
        message = delta(cursor) if cursor < total else done(total)
        cursor = min(cursor + 1, total)
        if next(losing, False):
            continue
        whole = (
            state.delta(message, 1.0)
            if isinstance(message, wire.Delta)
            else state.finish(message, 1.0)
        )
        if not whole:
            # A resume; the answer may overlap what has been seen.
            cursor = max(0, state.next_index - next(overlapping, 0))
        got += drain(state)
    assert got == list(range(total))
    result = state.completion()
    assert result.token_ids == tuple(100 + i for i in range(total))
    assert result.text == "".join(f"<{i}>" for i in range(total))


def test_timings_are_the_callers_own() -> None:
    state = StreamState(SUBMIT, 10.0)
    for index in range(5):
        state.delta(delta(index), 10.5 + index * 0.1)
    state.finish(done(5), 10.9)
    timings = state.completion().timings
    assert timings.ttft_s == pytest.approx(0.5)
    assert timings.total_s == pytest.approx(0.9)
    assert timings.tokens_per_s == pytest.approx(10.0)
    assert (timings.queue_s, timings.reroutes) == (0.1, 1)


def test_nothing_changes_after_the_end() -> None:
    state = StreamState(SUBMIT, 0.0)
    state.fail(KvExhausted("first"))
    state.fail(LocalError("second"))
    assert state.delta(delta(0), 1.0)
    assert state.finish(done(0), 1.0)
    assert str(state.error) == "first"
    assert state.next_index == 0
    assert state.done is None


def every_error() -> list[type[HelixError]]:
    found, todo = [], [HelixError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += [k for k in kind.__subclasses__() if k.__module__ == errors.__name__]
    return sorted(found, key=lambda k: k.__name__)


@pytest.mark.parametrize("kind", every_error())
def test_every_error_travels(kind: type[HelixError]) -> None:
    if issubclass(kind, CapacityError):
        error: HelixError = kind("why", param="p", retry_after_s=1.5)
    else:
        error = kind("why") if kind is errors.FrameError else kind("why", param="p")
    back = rebuilt(unpack(pack(failed(7, error)), wire.Failed))
    assert str(back) == "why"
    assert back.param == error.param
    if isinstance(error, CapacityError):
        assert isinstance(back, CapacityError)
        assert back.retry_after_s == 1.5
    # Two pairs share code and branch; the others come back as exactly what they were.
    shared = {CallerError: InvalidRequest, errors.FrameError: PeerError, HelixError: LocalError}
    assert type(back) is shared.get(kind, kind)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, CallerError),
        (418, CallerError),
        (429, CapacityError),
        (503, CapacityError),
        (504, CapacityError),
        (502, PeerError),
        (500, LocalError),
    ],
)
def test_an_unknown_code_falls_back_to_its_branch(status: int, kind: type[HelixError]) -> None:
    back = rebuilt(wire.Failed(1, "of_a_later_release", "why", None, status, None))
    assert type(back) is kind


def test_long_messages_are_cut_to_what_travels() -> None:
    message = failed(1, LocalError("x" * 100_000))
    assert unpack(pack(message), wire.Failed) == message


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_options_are_checked(value: float) -> None:
    with pytest.raises(ConfigError, match="keepalive_s"):
        ClientOptions(keepalive_s=value)


def test_importing_the_package_loads_no_client() -> None:
    code = (
        "import sys, helix_mq\n"
        "assert 'zmq' not in sys.modules\n"
        "assert helix_mq.Client.__name__ == 'Client'\n"
        "assert helix_mq.ClientOptions.__name__ == 'ClientOptions'\n"
        "assert 'zmq' in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="Klient"):
        _ = helix_mq.Klient  # type: ignore[attr-defined]


def test_a_new_connection_begins_with_something_small() -> None:
    """A router cuts who sends a lot before its first message is whole."""
    sent: list[object] = []

    def send(message: object) -> bool:
        sent.append(message)
        return True

    streams = Streams(send, VirtualClock(), max_streams=2)
    streams.open(submit_prompt(1, "x" * 2_000_000, {"max_tokens": 8}))
    for _ in range(2):
        streams.on_up()
        assert [type(message) for message in sent] == [wire.Keepalive, wire.Submit]
        streams.on_down()
        sent.clear()

"""The transport's pure parts: addresses, limits, the backlog, counters."""

from __future__ import annotations

import logging

import pytest

from helix_mq.transport import BadEndpoint, InsecureEndpoint, Limits, MessageTooLarge
from helix_mq.transport.backlog import COPY_BELOW_BYTES, Backlog, weigh
from helix_mq.transport.endpoints import require_security
from helix_mq.transport.options import wants_ipv6
from helix_mq.transport.statistics import Counters

SCHEMES = frozenset({"tcp", "ipc"})


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:0",
        "tcp://127.8.9.1:*",
        "tcp://localhost:7100",
        "tcp://[::1]:7100",
        "tcp://[::ffff:127.0.0.1]:7100",
        "ipc:///run/helix/data",
    ],
)
def test_this_machines_own_addresses_need_no_keys(endpoint: str) -> None:
    require_security(endpoint, secured=False, insecure=False, schemes=SCHEMES)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:7100",
        "tcp://0.0.0.0:7100",
        "tcp://10.0.0.3:7100",
        "tcp://node-a.example:7100",
        "tcp://localhost.example:7100",
        "tcp://[::]:7100",
        "tcp://[2001:db8::1]:7100",
        "tcp://[::ffff:10.0.0.1]:7100",
        "tcp://eth0:7100",
    ],
)
def test_other_addresses_need_keys_or_a_word(endpoint: str) -> None:
    with pytest.raises(InsecureEndpoint, match="insecure = true"):
        require_security(endpoint, secured=False, insecure=False, schemes=SCHEMES)
    require_security(endpoint, secured=True, insecure=False, schemes=SCHEMES)
    require_security(endpoint, secured=False, insecure=True, schemes=SCHEMES)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "tcp",
        "tcp://",
        "tcp://host",
        "tcp://host:",
        "tcp://:7100",
        "tcp://host:70000",
        "tcp://::1:7100",
        "tcp://host:7100/path",
        "udp://host:1",
        "inproc://x",
        "http://127.0.0.1:80",
        "ipc://",
        " tcp://127.0.0.1:1",
    ],
)
def test_bad_addresses_are_named(endpoint: str) -> None:
    with pytest.raises(BadEndpoint) as caught:
        require_security(endpoint, secured=True, insecure=True, schemes=SCHEMES)
    assert repr(endpoint) in str(caught.value)


def test_ipv6_is_for_brackets() -> None:
    assert wants_ipv6("tcp://[::1]:7100")
    assert not wants_ipv6("tcp://127.0.0.1:7100")
    assert not wants_ipv6("tcp://node-a:7100")
    assert not wants_ipv6("ipc://[x]")


@pytest.mark.parametrize("field", ["max_message_bytes", "max_parts", "heartbeat_s", "redial_s"])
def test_limits_are_positive(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} = 0"):
        Limits(**{field: 0})


def test_weighing_counts_bytes_not_items() -> None:
    limits = Limits(max_message_bytes=COPY_BELOW_BYTES * 3, max_parts=3)
    large = memoryview(bytearray(COPY_BELOW_BYTES)).cast("q")
    assert weigh([b"abc", large], limits) == (3 + COPY_BELOW_BYTES, COPY_BELOW_BYTES)
    with pytest.raises(MessageTooLarge, match="max_message_bytes"):
        weigh([large, large, bytes(COPY_BELOW_BYTES + 1)], limits)
    with pytest.raises(MessageTooLarge, match="max_parts"):
        weigh([b""] * 4, limits)


def test_a_backlog_holds_no_more_than_it_may() -> None:
    backlog = Backlog(Limits(backlog_messages=3, backlog_bytes=10))
    assert backlog.offer([b"x" * 50], 50)
    assert not backlog.offer([b"x"], 1)
    backlog.pop()
    assert (len(backlog.waiting), backlog.nbytes) == (0, 0)
    assert [backlog.offer([b"xxxx"], 4) for _ in range(3)] == [True, True, False]
    assert backlog.offer([b""], 0)
    assert not backlog.offer([b""], 0)
    greeting = Backlog(Limits())
    greeting.offer([b"hello"], 5)
    greeting.take_over(backlog)
    assert [parts[0] for parts, _, _ in greeting.waiting] == [b"hello", b"xxxx", b"xxxx", b""]
    assert (greeting.nbytes, backlog.nbytes, backlog.clear()) == (13, 0, 0)
    assert greeting.clear() == 4


def test_a_list_the_caller_uses_again_is_not_the_one_in_the_backlog() -> None:
    backlog = Backlog(Limits())
    parts = [b"a"]
    backlog.offer(parts, 1)
    parts[0] = b"b"
    assert backlog.waiting[0][0] == (b"a",)


def test_faults_are_counted_always_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters("the socket")
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            counters.drop("too_large", "peer-a")
        counters.drop("too_large", "peer-b")
        counters.drop("revoked", "peer-a")
        for i in range(5000):
            counters.drop("flood", f"peer-{i}")
    statistics = counters.statistics(backlog_messages=2, backlog_bytes=30)
    assert statistics.dropped == {"flood": 5000, "revoked": 1, "too_large": 101}
    assert (statistics.backlog_messages, statistics.backlog_bytes) == (2, 30)
    assert caplog.text.count("too_large), peer peer-a") == 1
    assert caplog.text.count("too_large), peer peer-b") == 1
    assert caplog.text.count("revoked), peer peer-a") == 1
    with pytest.raises(TypeError):
        statistics.dropped["x"] = 1  # type: ignore[index]

"""The sd_notify protocol, to a real datagram socket, from a real loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_mq.notify import Announcer, Notifier

Fields = dict[str, str]


class Process:
    """What says how it does."""

    def __init__(self) -> None:
        self.doing = "serving layers 0-11, 3 requests"
        self.hangs = ""

    def status(self) -> str:
        return self.doing

    def stuck(self) -> str:
        return self.hangs


class Manager:
    """The receiving end. `told` gives one message, within seconds."""

    def __init__(self, address: str | bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[Fields]:
        """What has come up to now."""
        found = []
        while True:
            try:
                found.append(fields_of(self.socket.recv(65_536)))
            except BlockingIOError:
                return found

    async def told(self) -> Fields:
        async with asyncio.timeout(240):
            got = await asyncio.get_running_loop().sock_recv(self.socket, 65_536)
        return fields_of(got)


def fields_of(message: bytes) -> Fields:
    return dict(line.split("=", 1) for line in message.decode().split("\n"))


@contextmanager
def manager(address: str | bytes) -> Iterator[Manager]:
    made = Manager(address)
    try:
        yield made
    finally:
        made.socket.close()


def notifier(path: Path | str, **more: str) -> Notifier:
    return Notifier.of({"NOTIFY_SOCKET": str(path), **more}, pid=77)


def test_both_kinds_of_address(tmp_path: Path) -> None:
    name = f"helix-{tmp_path.name}-{id(tmp_path)}"
    with manager(str(tmp_path / "notify")) as by_path, manager(b"\0" + name.encode()) as abstract:
        for end, address in ((by_path, str(tmp_path / "notify")), (abstract, f"@{name}")):
            told = notifier(address)
            assert told.send({"READY": "1", "STATUS": "up"})
            assert end.heard() == [{"READY": "1", "STATUS": "up"}]
            told.close()


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1"])
def test_silent_without_an_address(address: str | None) -> None:
    silent = Notifier.of({"NOTIFY_SOCKET": address} if address is not None else {}, pid=77)
    assert not silent.active
    assert silent.watchdog_s is None
    assert silent.send({"READY": "1"})


@pytest.mark.parametrize(
    ("variables", "wanted_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "77"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "78"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "\u0663"}, None),
    ],
)
def test_whose_watchdog_it_is(
    tmp_path: Path, variables: dict[str, str], wanted_s: float | None
) -> None:
    found = notifier(tmp_path / "notify", **variables)
    assert found.watchdog_s == wanted_s
    found.close()


@given(st.text(max_size=1_000))
def test_no_status_can_say_anything_else(text: str) -> None:
    name = b"\0helix-status"
    with manager(name) as end:
        told = notifier("@helix-status")
        assert told.send({"STATUS": f"waiting for {text}\nREADY=1"})
        (heard,) = end.heard()
        assert list(heard) == ["STATUS"]
        told.close()


def test_a_turn_says_what_has_changed_and_feeds_the_watchdog(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    process, stop = Process(), asyncio.Event()
    with manager(str(path)) as end:
        told = notifier(path, WATCHDOG_USEC="1000000")
        announcer = Announcer(told, process, stop, stopping_s=60.0)
        announcer.turn()
        announcer.ready()
        announcer.turn()
        process.doing = "waiting for layers 12-17"
        announcer.turn()
        stop.set()
        announcer.turn()
        announcer.turn()
        assert end.heard() == [
            {"STATUS": "serving layers 0-11, 3 requests", "WATCHDOG": "1"},
            {"READY": "1", "WATCHDOG": "1"},
            {"WATCHDOG": "1"},
            {"STATUS": "waiting for layers 12-17", "WATCHDOG": "1"},
            {
                "STOPPING": "1",
                "EXTEND_TIMEOUT_USEC": "60000000",
                "STATUS": "stopping: waiting for layers 12-17",
                "WATCHDOG": "1",
            },
            {"WATCHDOG": "1"},
        ]
        told.close()


def test_what_hangs_gives_no_sign_of_life(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "notify"
    process = Process()
    with manager(str(path)) as end:
        told = notifier(path, WATCHDOG_USEC="1000000")
        announcer = Announcer(told, process, asyncio.Event())
        announcer.ready()
        process.hangs = "the device has been at one job for more than 120 s"
        for _ in range(3):
            announcer.turn()
        process.hangs = ""
        announcer.turn()
        ready, hanging, again = end.heard()
        assert "WATCHDOG" in ready
        assert hanging == {"STATUS": "the device has been at one job for more than 120 s"}
        assert again == {"STATUS": process.doing, "WATCHDOG": "1"}
        assert caplog.text.count("gets no sign of life") == 1
        told.close()


def test_what_could_not_be_said_is_said_later(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    process = Process()
    told = notifier(path, WATCHDOG_USEC="1000000")
    announcer = Announcer(told, process, asyncio.Event())
    announcer.ready()
    with manager(str(path)) as end:
        process.hangs = "no tick for more than 15 s"
        announcer.turn()
        # Not the sign of life of before.
        assert end.heard() == [{"READY": "1", "STATUS": "no tick for more than 15 s"}]
    told.close()


async def test_the_loop_gives_signs_of_life_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    stop = asyncio.Event()
    with manager(str(path)) as end:
        announcer = Announcer.start(Process(), stop)
        announcer.ready()
        assert (await end.told())["READY"] == "1"
        for _ in range(5):
            assert await end.told() == {"WATCHDOG": "1"}
        stop.set()
        while "STOPPING" not in (said := await end.told()):
            assert said == {"WATCHDOG": "1"}
        assert await end.told() == {"WATCHDOG": "1"}
        await announcer.close()
        end.heard()
        announcer.turn()
        assert end.heard() == []


async def test_nothing_runs_without_a_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    before = asyncio.all_tasks()
    announcer = Announcer.start(Process(), asyncio.Event())
    announcer.ready()
    assert asyncio.all_tasks() == before
    await announcer.close()

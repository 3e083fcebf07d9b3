"""`bench bus`: what each system moves is what it was given; options, ratios and verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.bus.cli import LARGEST_BYTES, bus, links_of, size_of
from bench.bus.report import rows_of, table, verdicts
from bench.bus.ring import Ring, RingKind
from bench.bus.run import ROUNDS, Link, Round, Series, measure
from bench.bus.types import Load, System
from helix_mq.errors import ConfigError

KIB, MIB = 1 << 10, 1 << 20


def a_round(trip_s: float, rate: float) -> Round:
    return Round(trip_s, 2 * trip_s, rate, 1e-6, 4e-7, 6e-7, 0.0)


def series(system: str, parts: int, *rounds: Round) -> Series:
    return Series(RingKind(system, parts, "tcp", False, 2, 64 * KIB), list(rounds))


class TestOptions:
    @given(st.integers(1, LARGEST_BYTES // 16384).map(lambda n: n * 16384))
    def test_a_number_of_bytes_is_itself(self, nbytes: int) -> None:
        assert size_of(str(nbytes)) == nbytes

    def test_units(self) -> None:
        assert [size_of(text) for text in ("1KiB", " 64KiB", "16 MiB")] == [KIB, 64 * KIB, 16 * MIB]

    @pytest.mark.parametrize("text", ["", "0", "-2", "3", "1GB", "128MiB", "16386", "x", "٣٢"])
    def test_others_are_refused_by_name(self, text: str) -> None:
        with pytest.raises(ConfigError, match="--sizes"):
            size_of(text)

    def test_keys_are_for_tcp(self) -> None:
        links = links_of("1KiB", "1,3", "tcp,ipc", curve=True)
        assert [(x.transport, x.curve, x.hops) for x in links] == [
            ("tcp", False, 1),
            ("tcp", False, 3),
            ("ipc", False, 1),
            ("ipc", False, 3),
            ("tcp", True, 1),
            ("tcp", True, 3),
        ]

    @pytest.mark.parametrize(("hops", "transports"), [("0", "tcp"), ("a", "tcp"), ("1", "udp")])
    def test_bad_links_are_refused(self, hops: str, transports: str) -> None:
        with pytest.raises(ConfigError, match=r"--(hops|transports)"):
            links_of("1KiB", hops, transports, curve=False)


class TestReport:
    LINK = Link("tcp", False, 1, 64 * KIB)

    def test_ratios_are_of_the_same_round(self) -> None:
        # The machine was half as fast in the second round, for both: the ratio does not show it.
        base = series("blocking", 1, a_round(1e-4, 1000.0), a_round(2e-4, 500.0))
        ours = series("connection", 1, a_round(1.5e-4, 900.0), a_round(3e-4, 450.0))
        rows = rows_of(self.LINK, [base, ours])
        against = rows[1]["against"]
        assert isinstance(against, dict)
        assert against["blocking-1"]["trip"] == [1.5, 1.5, 1.5]
        assert against["blocking-1"]["rate"] == [0.9, 0.9, 0.9]

    @pytest.mark.parametrize(("trip_s", "met"), [(1.99e-4, True), (2.01e-4, False)])
    def test_a_target_is_met_or_not(self, trip_s: float, met: bool) -> None:
        base = series("blocking", 1, a_round(1e-4, 1000.0))
        rows = rows_of(self.LINK, [base, series("connection", 1, a_round(trip_s, 1000.0))])
        assert [v["met"] for v in verdicts(rows)] == [met]
        assert ("met " in table(rows)) is met


@pytest.mark.parametrize("system", ["blocking", "drained", "connection", "plane"])
def test_every_message_arrives_and_is_timed(system: str) -> None:
    """In processes of their own, round the ring and in a stream, the same ring twice."""
    with Ring(RingKind(system, 3, "ipc", False, 2, 64 * KIB)) as ring:
        for _ in range(2):
            assert len(ring.run(Load("trips", 12))[0].trips_s) == 12
            source, sink = ring.run(Load("stream", 40))
            assert source.start_s < sink.end_s
            assert sink.cpu_s > 0


def test_the_plane_goes_over_several_hops_with_keys_and_copies_no_tensor() -> None:
    nbytes = 4 * MIB
    with Ring(RingKind("plane", 3, "tcp", True, 3, nbytes)) as ring:
        assert len(ring.run(Load("trips", 3))[0].trips_s) == 3
        # All that Python held at any time, of eight frames at three places: their headers.
        held = [share.traced_bytes for share in ring.run(Load("copies", 8))]
        assert max(held) < nbytes // 2, held


def test_each_start_has_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all rounds count."""
    started: list[str] = []
    enter = Ring.__enter__

    def noted(self: Ring) -> Ring:
        started.append(self.kind.name)
        return enter(self)

    monkeypatch.setattr(Ring, "__enter__", noted)
    said: list[str] = []
    systems: list[tuple[System, int]] = [("blocking", 1), ("blocking", 3)]
    link = Link("ipc", curve=False, hops=1, size_bytes=KIB)
    found = measure(link, 0.05, said.append, systems, starts=2)
    assert started == ["blocking-1", "blocking-3"] * 2
    assert [(s.kind.name, len(s.rounds)) for s in found] == [
        ("blocking-1", 2 * ROUNDS),
        ("blocking-3", 2 * ROUNDS),
    ]
    assert said == [f"ipc, 1 hop, 1 KiB, start {n} of 2" for n in (1, 2)]


def test_an_interrupted_run_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(link: Link, *args: object, starts: int) -> list[Series]:
        if link.size_bytes == MIB:
            raise KeyboardInterrupt
        return [series("blocking", 1, a_round(1e-4, 1000.0))]

    monkeypatch.setattr("bench.bus.run.measure", measure)
    out = tmp_path / "bus.json"
    with pytest.raises(KeyboardInterrupt):
        bus(sizes="1KiB,1MiB", hops="1", transports="ipc", curve=False, seconds=0.05, out=out)
    results = json.loads(out.read_text())
    assert results["links"] == {"measured": 1, "of": 2}
    assert [row["size_bytes"] for row in results["rows"]] == [KIB]

"""`helix-mq bench bus`: options into links, each measured, the result to where it was asked for."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from bench.live_run import OutOption, say
from helix_mq.errors import ConfigError

if TYPE_CHECKING:
    from bench.bus.run import Link

TRANSPORTS = ("tcp", "ipc")
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}
LARGEST_BYTES = 64 << 20
MOST_HOPS = 15


def bus(
    sizes: Annotated[
        str, typer.Option(help="Bytes of tensor in a frame: 1024, 64KiB, 1MiB; even, by commas.")
    ] = "1KiB,64KiB,1MiB,16MiB",
    hops: Annotated[str, typer.Option(help="Hops that a stream crosses, by commas.")] = "1,3",
    transports: Annotated[str, typer.Option(help="tcp, ipc, or both.")] = "tcp,ipc",
    curve: Annotated[bool, typer.Option(help="Measures tcp with keys as well.")] = True,
    seconds: Annotated[
        float, typer.Option(min=0.05, max=600, help="Of each system on each link.")
    ] = 1.0,
    starts: Annotated[
        int, typer.Option(min=1, max=100, help="Fresh processes, each measured for so long.")
    ] = 1,
    out: OutOption = None,
) -> None:
    """Measures what a hop costs, beside plain pyzmq: latency, messages/s, bytes/s and CPU."""
    from bench.bus.report import rows_of, table, verdicts
    from bench.bus.run import measure
    from bench.ending import told_to_end
    from bench.planner_common import machine_summary, write_results

    links = links_of(sizes, hops, transports, curve=curve)
    machine = machine_summary(("msgpack", "msgspec", "pyzmq", "uvloop")) | {"libzmq": _libzmq()}
    rows: list[dict[str, object]] = []
    for done, link in enumerate(links, 1):
        with told_to_end():
            rows.extend(rows_of(link, measure(link, seconds, say, starts=starts)))
        if out is not None:
            # After each link: a run that is interrupted leaves what it has.
            results: dict[str, object] = {
                "command": f"helix-mq {shlex.join(sys.argv[1:])}",
                "machine": machine,
                "links": {"measured": done, "of": len(links)},
                "rows": rows,
                "targets": verdicts(rows),
            }
            write_results(out, json.loads(json.dumps(results)))
    print(table(rows))


def links_of(sizes: str, hops: str, transports: str, *, curve: bool) -> list[Link]:
    """Every combination; keys on tcp only, as ipc is for one machine. Raises ConfigError."""
    from bench.bus.run import Link

    names = [name.strip() for name in transports.split(",")]
    for name in names:
        if name not in TRANSPORTS:
            raise ConfigError(f"--transports {name}: give tcp, ipc or tcp,ipc", param="transports")
    counts = [_hops_of(text) for text in hops.split(",")]
    nbytes = [size_of(text) for text in sizes.split(",")]
    ways = [(name, False) for name in names]
    if curve and "tcp" in names:
        ways.append(("tcp", True))
    return [
        Link(transport, keys, count, size)
        for transport, keys in ways
        for count in counts
        for size in nbytes
    ]


def size_of(text: str) -> int:
    """Bytes in `1024`, `64KiB` or `1MiB`. Raises ConfigError."""
    text = text.strip()
    unit = next((factor for name, factor in UNITS.items() if text.endswith(name)), 1)
    digits = text[:-3].strip() if unit > 1 else text
    nbytes = (
        int(digits) * unit if digits.isascii() and digits.isdecimal() and len(digits) < 12 else 0
    )
    if not 2 <= nbytes <= LARGEST_BYTES or nbytes % 2 or (nbytes > 16384 and nbytes % 16384):
        raise ConfigError(
            f"--sizes {text}: give an even number of bytes up to 64MiB, whole rows of 16 KiB where "
            "it is larger than one, such as 1KiB, 64KiB or 1MiB",
            param="sizes",
        )
    return nbytes


def _hops_of(text: str) -> int:
    text = text.strip()
    count = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 0
    if not 1 <= count <= MOST_HOPS:
        raise ConfigError(f"--hops {text}: give numbers from 1 to {MOST_HOPS}", param="hops")
    return count


def _libzmq() -> str:
    import zmq

    return zmq.zmq_version()

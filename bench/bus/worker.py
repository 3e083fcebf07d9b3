"""One process of a ring. Reads its orders from stdin, a JSON object a line, and answers on stdout.

    <- Spec               -> {"endpoint"}
    <- {"connect"}        -> {"ready"}
    <- Load               -> {"ready"}      armed: messages may come
    <- {"go"}             -> Measured       at the end of its share; a source begins with it
End of input ends the process.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TypeVar

import msgspec
import uvloop

from bench.bus.blocking import BlockingPlace
from bench.bus.connection import ConnectionPlace
from bench.bus.drained import DrainedPlace
from bench.bus.loop_place import LoopPlace
from bench.bus.plane import PlanePlace
from bench.bus.types import Load, Spec
from helix_mq.time_slices import answer_soon
from nodes.tuning import tune_process

T = TypeVar("T")

_LOOPS: dict[str, type[LoopPlace]] = {
    "drained": DrainedPlace,
    "connection": ConnectionPlace,
    "plane": PlanePlace,
}


class Connect(msgspec.Struct):
    connect: str


class Go(msgspec.Struct, forbid_unknown_fields=True):
    go: bool


def main() -> None:
    spec = _read(Spec)
    assert spec is not None
    if spec.system == "blocking":
        _serve_blocking(spec)
    else:
        # As a node's process does. A bare socket on a loop as well, as that is what our own work is
        # held against; blocking pyzmq is taken as it comes.
        tune_process()
        answer_soon()
        uvloop.run(_serve(spec))


def _serve_blocking(spec: Spec) -> None:
    place = BlockingPlace(spec)
    _say({"endpoint": place.endpoint})
    connect = _read(Connect)
    assert connect is not None
    place.connect(connect.connect)
    _say({"ready": True})
    while (load := _read(Load)) is not None:
        _say({"ready": True})
        _read(Go)
        _say(place.run(load))
    place.close()


async def _serve(spec: Spec) -> None:
    place = _LOOPS[spec.system](spec)
    await place.bind()
    _say({"endpoint": place.endpoint})
    connect = _read(Connect)
    assert connect is not None
    await place.connect(connect.connect)
    _say({"ready": True})
    while (load := await asyncio.to_thread(_read, Load)) is not None:
        place.arm(load)
        _say({"ready": True})
        await asyncio.to_thread(_read, Go)
        _say(await place.run())
    await place.close()


def _read(kind: type[T]) -> T | None:
    line = sys.stdin.buffer.readline()
    return msgspec.json.decode(line, type=kind) if line.strip() else None


def _say(answer: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

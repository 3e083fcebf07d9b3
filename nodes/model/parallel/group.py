"""The processes of the other ranks, from rank 0's side: start, orders, answers, loss, end.

The loss of one is the end of all: a rank that misses a step can never catch up. Whoever listens is
told once, with the reason, from a thread of this module.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from helix_mq.errors import FrameError, LocalError
from nodes.model.parallel.channel import Channel, ChannelClosed
from nodes.model.parallel.orders import Answer, Array, Failed, Order, Up
from nodes.model.parallel.slice import Others

log = logging.getLogger(__name__)

START_S = 120.0
"""Longest that a process may take to come up: it imports torch, on a machine that may be busy."""
_END_S = 5.0
_SEEN_S = 1.0
"""The end of a rank is known so much later than its broken connection at most."""


class RankLost(LocalError):
    """A rank of this node's tensor parallelism ended; the node cannot go on."""

    code = "rank_lost"


@dataclass(frozen=True, slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    channel: Channel
    answers: queue.SimpleQueue[Answer | None]
    """None: there will be no more."""


class RankGroup(Others):
    """Ranks 1 to size - 1."""

    def __init__(self, size: int) -> None:
        """Starts the processes and returns when all are up; RankLost when one does not come."""
        self._size = size
        self._lock = threading.Lock()
        self._lost: str | None = None
        self._is_lost = threading.Event()
        self._closing = False
        self._listener: Callable[[str], None] | None = None
        self.on_broken: Callable[[], None] | None = None
        """Called first when ranks are lost; ends what rank 0 waits for in a step."""
        # Of this user alone: whoever can write there can be a rank.
        self._folder = Path(tempfile.mkdtemp(prefix="helix-mq-ranks-"))
        self._ranks: list[_Rank] = []
        try:
            for number in range(1, size):
                self._ranks.append(_start(number))
            self._end = weakref.finalize(self, _end, list(self._ranks), self._folder)
            for rank in self._ranks:
                threading.Thread(
                    target=_listen, args=(weakref.ref(self), rank), name=f"rank {rank.number}",
                    daemon=True,
                ).start()  # fmt: skip
            for rank in self._ranks:
                self._answer(rank, START_S)
        except BaseException:
            self._closing = True
            _end(self._ranks, self._folder)
            raise

    @property
    def meeting(self) -> Path:
        """A file for the ranks to meet at, in a folder of this user's."""
        return self._folder / "meeting"

    def listen(self, listener: Callable[[str], None]) -> None:
        """`listener` is told of a loss, past or to come, in words."""
        with self._lock:
            self._listener = listener
            lost = self._lost
        if lost is not None:
            listener(lost)

    def tell_rank(self, number: int, order: Order) -> None:
        self._send(self._ranks[number - 1], order, ())

    def answers(self) -> list[Answer]:
        """One answer of each; RankLost when there will be none."""
        return [self._answer(rank, None) for rank in self._ranks]

    def tell(self, order: Order, arrays: Sequence[Array] = ()) -> None:
        for rank in self._ranks:
            self._send(rank, order, arrays)

    def have(self, order: Order, arrays: Sequence[Array] = ()) -> None:
        self.tell(order, arrays)
        short = [a.reason for a in self.answers() if isinstance(a, Failed)]
        if short:
            raise torch.OutOfMemoryError(f"a rank has no memory: {short[0]}")

    def broken(self, reason: str) -> None:
        # A step mostly breaks because another rank has ended, which is what people should read.
        if not self._closing and not self._is_lost.wait(_SEEN_S):
            self._break(reason)

    def _break(self, reason: str) -> None:
        with self._lock:
            if self._lost is not None or self._closing:
                return
            self._lost = reason
            self._is_lost.set()
            listener = self._listener
        if self.on_broken is not None:
            self.on_broken()
        for rank in self._ranks:
            rank.process.kill()
        if listener is not None:
            listener(reason)

    def close(self) -> None:
        with self._lock:
            self._closing = True
        self._end()

    def _send(self, rank: _Rank, order: Order, arrays: Sequence[Array]) -> None:
        if self._lost is not None:
            raise RankLost(self._lost)
        try:
            rank.channel.send(order, arrays)
        except ChannelClosed:
            raise RankLost(self._lost or f"rank {rank.number} has ended") from None

    def _answer(self, rank: _Rank, wait_s: float | None) -> Answer:
        try:
            answer = rank.answers.get(timeout=wait_s)
        except queue.Empty:
            raise RankLost(f"rank {rank.number} did not start within {wait_s:.0f} s") from None
        if answer is None:
            # For those who ask again.
            rank.answers.put(None)
            raise RankLost(self._lost or f"rank {rank.number} has ended")
        return answer

    def ended(self, rank: _Rank, reason: str) -> None:
        """One has; called by its listening thread."""
        self._break(
            f"rank {rank.number} of {self._size} has ended ({reason}): this node computes with all "
            "of its ranks or not at all, and stops; start it again"
        )


def _start(number: int) -> _Rank:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            # -P: what lies in the folder that the node was started from is not imported.
            [sys.executable, "-P", "-m", "nodes.model.parallel.follower", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Ctrl-C in a terminal is for rank 0, which drains first.
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
    return _Rank(number, process, Channel(ours), queue.SimpleQueue())


def _listen(group: weakref.ref[RankGroup], rank: _Rank) -> None:
    """Until the rank ends. Holds no group meanwhile, so that one that nobody holds can go."""
    reason = ""
    while True:
        try:
            answer = rank.channel.receive().message
        except ChannelClosed:
            break
        except FrameError as e:
            reason = str(e)
            break
        if isinstance(answer, Failed) and not answer.no_memory:
            reason = answer.reason
            break
        if not isinstance(answer, Up | Answer):
            reason = f"{type(answer).__name__} is no answer"
            break
        rank.answers.put(answer)
    if not reason:
        try:
            reason = f"exit status {rank.process.wait(_END_S)}"
        except subprocess.TimeoutExpired:
            reason = "it closed its channel"
    found = group()
    if found is not None:
        found.ended(rank, reason)
    rank.answers.put(None)


def _end(ranks: Sequence[_Rank], folder: Path) -> None:
    for rank in ranks:
        rank.channel.close()
    for rank in ranks:
        try:
            rank.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            rank.process.kill()
            rank.process.wait()
    shutil.rmtree(folder, ignore_errors=True)

"""Ranks as threads of one process: the same slices and orders, without the start of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation
from nodes.model.attention.choose import choose_attention
from nodes.model.parallel.follower import Follower
from nodes.model.parallel.orders import (
    Array,
    LoadPart,
    Message,
    Order,
    Received,
    decode_header,
    encode,
    header_bytes,
)
from nodes.model.parallel.slice import LeadSlice, Others
from nodes.model.parallel.split import rank_config
from nodes.model.parallel.weights import load_part

CPU = torch.device("cpu")
WAIT_S = 240


@dataclass
class Table:
    """Where threads lay their tensors for each other."""

    size: int
    laid: list[torch.Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.laid = [None] * self.size
        self.barrier = threading.Barrier(self.size)


class ThreadRanks:
    def __init__(self, table: Table, rank: int) -> None:
        self.rank = rank
        self.size = table.size
        self._table = table

    def _exchange(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._table.laid[self.rank] = tensor.clone()
        self._table.barrier.wait(WAIT_S)
        found = [t for t in self._table.laid if t is not None]
        self._table.barrier.wait(WAIT_S)
        assert len({t.shape for t in found}) == 1
        return found

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self._exchange(tensor)).sum(0))

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.copy_(torch.stack(self._exchange(tensor)).amax(0))

    def spread(self, tensor: torch.Tensor) -> None:
        tensor.copy_(self._exchange(tensor)[0])

    def collect(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        found = self._exchange(tensor)
        return found if self.rank == 0 else []


def over_the_wire(message: Message, arrays: Sequence[Array]) -> Received:
    """What arrives of it."""
    stream = b"".join(bytes(part) for part in encode(message, arrays))
    count = header_bytes(stream[:4])
    found, empty = decode_header(stream[4 : 4 + count])
    at = 4 + count
    for array in empty:
        array.reshape(-1).view("u1")[:] = list(stream[at : at + array.nbytes])
        at += array.nbytes
    assert at == len(stream)
    return Received(found, empty)


class ThreadedOthers(Others):
    """Followers that obey in a thread each."""

    def __init__(self, followers: Sequence[Follower]) -> None:
        self.followers = followers
        self._threads = [ThreadPoolExecutor(1) for _ in followers]
        self._last: list[Future[Any]] = []

    def tell(self, order: Order, arrays: Sequence[Array] = ()) -> None:
        received = over_the_wire(order, arrays)
        self._last = [
            thread.submit(follower.obey, received)
            for thread, follower in zip(self._threads, self.followers, strict=True)
        ]

    def have(self, order: Order, arrays: Sequence[Array] = ()) -> None:
        self.tell(order, arrays)
        self.wait()

    def wait(self) -> None:
        for job in self._last:
            job.result(WAIT_S)

    def broken(self, reason: str) -> None:
        raise AssertionError(reason)

    def listen(self, listener: Callable[[str], None]) -> None:
        """A thread is not lost."""

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()


def threaded(
    folder: Path, layers: LayerRange, size: int, quantise: Quantisation = Quantisation.NONE
) -> LeadSlice:
    """A slice over `size` ranks in threads."""
    config = ModelConfig.from_folder(folder)
    table = Table(size)
    followers = [Follower() for _ in range(1, size)]
    with ThreadPoolExecutor(size) as loading:
        for rank, follower in enumerate(followers, 1):
            order = LoadPart(
                meeting="", rank=rank, size=size, folder=str(folder), first=layers.first,
                end=layers.end, device="cpu", dtype="float32", attention="auto", threads=1,
                quantise=quantise,
            )  # fmt: skip
            loading.submit(follower.load, order, ThreadRanks(table, rank))
        ranks = ThreadRanks(table, 0)
        choice = choose_attention(rank_config(config, size), CPU, torch.float32)
        weights = load_part(
            folder, config, layers, ranks, device=CPU, dtype=torch.float32, quantise=quantise
        )
    others = ThreadedOthers(followers)
    return LeadSlice(config, layers, weights, choice, ranks, others, quantise)


@pytest.fixture
def over_ranks() -> Any:
    """threaded(), closed at the end."""
    made: list[LeadSlice] = []

    def make(
        folder: Path, layers: LayerRange, size: int, quantise: Quantisation = Quantisation.NONE
    ) -> LeadSlice:
        made.append(threaded(folder, layers, size, quantise))
        return made[-1]

    yield make
    for part in made:
        part.close()

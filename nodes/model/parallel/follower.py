"""The process of a rank above 0: does as rank 0 says, and ends when the channel does.

Started as `python -m nodes.model.parallel.follower FD`, with one end of a socket pair. Signals of
the terminal and the service manager are rank 0's business: it drains first.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path

import torch

from helix_mq.errors import FrameError, HelixError
from helix_mq.layers import LayerRange
from helix_mq.models.config import ModelConfig
from helix_mq.time_slices import compute_long
from nodes.kv_cache import KvCache
from nodes.kv_pages import LayerPagePool
from nodes.model.attention.choose import choose_attention
from nodes.model.dtype import DTYPES
from nodes.model.parallel.channel import Channel, ChannelClosed
from nodes.model.parallel.orders import (
    Allocate,
    Answer,
    Cut,
    Done,
    Enlarge,
    Failed,
    LoadPart,
    Ready,
    Received,
    RunSegment,
    Up,
)
from nodes.model.parallel.ranks import ProcessRanks, Ranks
from nodes.model.parallel.slice import FollowerSlice
from nodes.model.parallel.split import check_groups, check_split, rank_config
from nodes.model.parallel.weights import load_part

log = logging.getLogger(__name__)


class Follower:
    """One rank's part of a slice, and its KV cache."""

    def __init__(self) -> None:
        self._slice: FollowerSlice | None = None
        self._cache: KvCache | None = None

    def obey(self, received: Received) -> Answer | None:
        """Does it; the answer, where one is expected. Raises what went wrong."""
        match received.message:
            case LoadPart() as order:
                ranks = ProcessRanks(
                    Path(order.meeting), order.rank, order.size, torch.device(order.device)
                )
                torch.set_num_threads(order.threads)
                return self.load(order, ranks)
            case Allocate() as order:
                # The old one goes before the new one comes.
                self._cache = None
                self._cache = self.slice.new_cache(order.total_pages, order.page_tokens)
            case Enlarge() as order:
                # It may have been enlarged before, when another rank had no memory.
                if order.total_pages > self.cache.pool.total_pages:
                    self.cache.enlarge(order.total_pages, *received.arrays)
                    self._resized(order.total_pages)
            case Cut() as order:
                self.cache.cut(order.total_pages, *received.arrays)
                self._resized(order.total_pages)
            case RunSegment() as order:
                self.slice.follow(order, received.arrays, self.cache)
                return None
            case other:
                raise FrameError(f"{type(other).__name__} is no order", reason="kind")
        return Done()

    def load(self, order: LoadPart, ranks: Ranks) -> Ready:
        """Reads this rank's part."""
        config = ModelConfig.from_folder(Path(order.folder))
        check_split(config, order.size)
        layers = LayerRange(order.first, order.end)
        device, dtype = torch.device(order.device), DTYPES[order.dtype]
        choice = choose_attention(rank_config(config, order.size), device, dtype, order.attention)
        check_groups(order.quantise, config, order.size)
        weights = load_part(
            Path(order.folder),
            config,
            layers,
            ranks,
            device=device,
            dtype=dtype,
            quantise=order.quantise,
        )
        self._slice = FollowerSlice(config, layers, weights, choice, ranks)
        return Ready(weight_bytes=weights.nbytes)

    @property
    def slice(self) -> FollowerSlice:
        if self._slice is None:
            raise FrameError("an order before this rank was loaded", reason="order")
        return self._slice

    @property
    def cache(self) -> KvCache:
        if self._cache is None:
            raise FrameError("an order before this rank had a KV cache", reason="order")
        return self._cache

    def _resized(self, total_pages: int) -> None:
        # Whose a page is, only rank 0 knows; the pool here says how many there are.
        self.cache.pool = LayerPagePool(total_pages, self.cache.page_tokens)


def serve(channel: Channel, follower: Follower) -> str | None:
    """Obeys until the channel ends (None), or until something fails: what, in words."""
    try:
        channel.send(Up())
        while True:
            received = channel.receive()
            try:
                answer = follower.obey(received)
            except (torch.OutOfMemoryError, MemoryError) as e:
                if not isinstance(received.message, Allocate | Enlarge):
                    raise
                answer = Failed(reason=str(e)[:1024], no_memory=True)
            if answer is not None:
                channel.send(answer)
    except ChannelClosed:
        return None
    except (HelixError, RuntimeError, MemoryError, OSError, ValueError, TypeError) as e:
        reason = e.message if isinstance(e, HelixError) else f"{type(e).__name__}: {e}"
        try:
            channel.send(Failed(reason=reason[:1024]))
        except ChannelClosed:
            # Rank 0 has ended, which is why the step failed.
            return None
        return reason


def main() -> None:
    compute_long()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    reason = serve(channel, Follower())
    if reason is not None:
        print(f"a rank of tensor_parallel ends: {reason}", file=sys.stderr, flush=True)
    # At once: destructors of process groups wait for ranks that may be gone.
    os._exit(0 if reason is None else 1)


if __name__ == "__main__":
    main()

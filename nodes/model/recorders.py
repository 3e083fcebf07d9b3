"""Records what a device does for a step, and has it done again without the host's launches.

CUDA graphs are captured and replayed here and nowhere else. Where there are none, the function is
simply called again: the same buffers, the same filling up, so that all but the capture is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import torch

Body = Callable[[], torch.Tensor]
"""Reads tensors of fixed place and returns one; launches the same work whenever it is called."""

_WARM_UP_CALLS = 2
"""Libraries allocate workspaces and choose kernels in first calls, which cannot be captured."""
_SPARE_BYTES = 512 << 20
"""A recording is not made where less than so much memory is free: steps may need it."""


class Recording(Protocol):
    def replay(self) -> torch.Tensor:
        """The body's result, valid until the next replay of any recording."""
        ...


class Recorder(Protocol):
    def has_room(self) -> bool: ...

    def record(self, body: Body) -> Recording: ...

    def dropped(self) -> None:
        """No recording of its own is kept any more."""
        ...


class CallAgain:
    """The recorder of devices without graphs."""

    def has_room(self) -> bool:
        return True

    def record(self, body: Body) -> Recording:
        return _Call(body)

    def dropped(self) -> None:
        """There is nothing that they shared."""


class _Call:
    def __init__(self, body: Body) -> None:
        self._body = body

    def replay(self) -> torch.Tensor:
        return self._body()


class CudaGraphs:
    """Captures on a stream of its own; all recordings share one pool of memory, as only one's
    results are in use at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def has_room(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self._device)
        return free >= _SPARE_BYTES

    def dropped(self) -> None:
        # A pool whose graphs are all gone is not one to capture into.
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, body: Body) -> Recording:
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_CALLS):
                body()
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: another slice may be loading on its own thread, which allocates meanwhile.
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result = body()
        except BaseException:
            # A capture that cannot be ended leaves its stream the present one.
            torch.cuda.set_stream(here)
            _end_allocations(here.device_index, self._pool)
            raise
        return _Graph(graph, result)


def _end_allocations(device: int, pool: object) -> None:
    """After a capture that failed: some versions of PyTorch leave their allocator believing that it
    goes on, and give no memory back from then on (pytorch/pytorch#180395)."""
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)
    if end is not None:
        # It did so itself.
        with suppress(RuntimeError):
            end(device, pool)


class _Graph:
    def __init__(self, graph: torch.cuda.CUDAGraph, result: torch.Tensor) -> None:
        self._graph = graph
        self._result = result

    def replay(self) -> torch.Tensor:
        self._graph.replay()
        return self._result

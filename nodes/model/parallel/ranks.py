"""What the ranks of a slice do together, over torch.distributed: sum, largest, spread, collect.

Its process groups are made one by one and not as the process's own, since a node may hold two
slices at a time, each with ranks of its own. Everything stays on this host: the meeting point is a
file in a folder of this user's, and gloo and NCCL are bound to the loopback interface.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

MEET_S = 120.0
"""Longest wait for another rank, at the start and in a step. One that is dead is found at once by
its connection or its process; this is for one that hangs."""


class Ranks(Protocol):
    """All ranks must call the same in the same order, with tensors of the same shapes."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, contiguous, with the sum over all ranks in it."""
        ...

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, contiguous, with the largest over all ranks in each place."""
        ...

    def spread(self, tensor: torch.Tensor) -> None:
        """Fills `tensor` of the others with rank 0's."""
        ...

    def collect(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's `tensor` at rank 0, in order; nothing elsewhere."""
        ...


class ProcessRanks:
    """Ranks in processes of this host. Building one waits until all have come."""

    def __init__(self, meeting: Path, rank: int, size: int, device: torch.device) -> None:
        """meeting: a file that no other group uses."""
        self.rank = rank
        self.size = size
        store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
        # Its own is 300 s, and NCCL waits for the others at the store.
        store.set_timeout(timedelta(seconds=MEET_S))
        on_gpu = device.type == "cuda"
        self._group = (_nccl if on_gpu else _gloo)(store, rank, size)
        if on_gpu:
            # NCCL connects at its first operation: where that fails, it is to fail here.
            self.sum(torch.zeros(1, device=device))
            torch.cuda.synchronize(device)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        options = dist.AllreduceOptions()  # which sums
        self._group.allreduce([tensor], options).wait()
        return tensor

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX  # type: ignore[assignment]
        self._group.allreduce([tensor], options).wait()
        return tensor

    def spread(self, tensor: torch.Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        self._group.broadcast([tensor], options).wait()

    def collect(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        options = dist.GatherOptions()
        options.rootRank = 0
        parts = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else []
        self._group.gather([parts] if parts else [], [tensor], options).wait()
        return parts

    def abort(self) -> None:
        """Ends operations that wait for a rank that is gone; NCCL's kernels would for ever."""
        abort = getattr(self._group, "abort", None)
        if abort is not None:
            abort()


# torch's stubs of the groups and stores leave out what is used here.
def _gloo(store: Any, rank: int, size: int) -> Any:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timedelta(seconds=MEET_S)
    # By name of an address: the default looks the host's name up and may take an outer interface.
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    return gloo(store, rank, size, options)


def _nccl(store: Any, rank: int, size: int) -> Any:
    # Ranks meet over sockets even where data then goes over NVLink.
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    nccl: Any = dist.ProcessGroupNCCL
    options = nccl.Options()
    options._timeout = timedelta(seconds=MEET_S)
    return nccl(store, rank, size, options)

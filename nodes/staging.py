"""Host memory that a CUDA device copies from and to by itself, while both do other work.

Pageable memory is copied by way of a driver's buffer, with the caller waiting. Pinned memory is
not; but it must not be written before the device has read it, which is what this module sees to.
On other devices the host's memory is the device's, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Moment(Protocol):
    """A point in a device's queue of work."""

    def record(self) -> None: ...

    def synchronize(self) -> None:
        """Waits until the device is past it; at once where it never was recorded."""
        ...


class Now:
    """Of a device that has done its work when a call returns."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class DeviceMoment:
    """In the present stream of `device`. An event alone is recorded in that of the thread's present
    device, which is the first one for all slices: for one on another it would tell of nothing."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self) -> None:
        self._event.record(torch.cuda.current_stream(self._device))

    def synchronize(self) -> None:
        self._event.synchronize()


def moment(device: torch.device) -> Moment:
    return DeviceMoment(device) if device.type == "cuda" else Now()


def host_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On the host, pinned where `device` copies from pinned memory."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def joined(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """`parts` [rows, ...] of one dtype below each other, in one copy, where `device` reads from."""
    if device.type != "cuda":
        return torch.cat(list(parts))
    rows = sum(len(part) for part in parts)
    whole = host_empty((rows, *parts[0].shape[1:]), parts[0].dtype, device)
    return torch.cat(list(parts), out=whole)


class Download:
    """A tensor on its way from the device to the host; both may do other things until wait().

    The memory is the result's own. torch keeps pinned blocks for later tensors once nobody holds
    them any more, a frame that waits to be sent included, so none is made twice for long.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._there = moment(tensor.device)
        self._host = tensor.contiguous()
        if tensor.device.type == "cuda":
            self._host = host_empty(tuple(tensor.shape), tensor.dtype, tensor.device)
            self._host.copy_(tensor, non_blocking=True)
            self._there.record()

    def wait(self) -> torch.Tensor:
        """Contiguous, on the host."""
        self._there.synchronize()
        return self._host


class Upload:
    """A tensor on the device, and one on the host that it is filled from. Both of fixed place."""

    def __init__(
        self,
        numel: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        apart: bool | None = None,
        read: Moment | None = None,
    ) -> None:
        """apart: whether the host's memory is another (default: on CUDA). read: told when it has
        been sent, and asked to wait before it is written again."""
        self.device_flat = torch.zeros(numel, dtype=dtype, device=device)
        apart = device.type == "cuda" if apart is None else apart
        self._host = host_empty((numel,), dtype, device).zero_() if apart else None
        self._read = read or moment(device)

    @property
    def nbytes(self) -> int:
        """On the device."""
        return self.device_flat.nbytes

    def host(self, numel: int) -> torch.Tensor:
        """The first `numel` elements, to be written; waits until the last send() has been read."""
        self._read.synchronize()
        return (self.device_flat if self._host is None else self._host)[:numel]

    def send(self, numel: int) -> None:
        """Those of the host to the device, in the present stream; returns before it is done."""
        if self._host is not None:
            self.device_flat[:numel].copy_(self._host[:numel], non_blocking=True)
            self._read.record()

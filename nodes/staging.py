"""Host memory that a CUDA device copies from and to by itself, while both do other work.

Pageable memory is copied by way of a driver's buffer, with the caller waiting. Pinned memory is
not; but it must not be written before the device has read it, which is what this module sees to.
On other devices the host's memory is the device's, and nothing is copied.
"""

from __future__ import annotations

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


def moment(device: torch.device) -> Moment:
    if device.type != "cuda":
        return Now()
    event: Moment = torch.cuda.Event()  # type: ignore[no-untyped-call]
    return event


def host_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On the host, pinned where `device` copies from pinned memory."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


class Upload:
    """A tensor on the device, and one on the host that it is filled from. Both of fixed place."""

    def __init__(self, numel: int, dtype: torch.dtype, device: torch.device) -> None:
        self.device_flat = torch.zeros(numel, dtype=dtype, device=device)
        self._apart = device.type == "cuda"
        self._host = host_empty((numel,), dtype, device).zero_() if self._apart else None
        self._read = moment(device)

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

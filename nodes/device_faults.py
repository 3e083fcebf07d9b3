"""Tells a step that failed from a device that will never work again in this process."""

from __future__ import annotations

import torch

from helix_mq.errors import DeviceLost


def raise_if_lost(device: torch.device, error: RuntimeError) -> None:
    """Call with what a step raised. After a fault inside a kernel, such as an access out of bounds,
    CUDA refuses every call of the process: DeviceLost then, so that the node ends and whoever
    started it starts it anew, rather than fails each step that it is sent."""
    if device.type != "cuda" or isinstance(error, torch.OutOfMemoryError):
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as fault:
        text = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise DeviceLost(f"{device} works no more in this process: {text[:200]}") from error

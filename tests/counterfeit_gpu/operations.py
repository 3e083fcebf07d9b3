"""Every function of torch that is called with tensors of the counterfeit device, or makes one."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tests.counterfeit_gpu import device as state
from tests.counterfeit_gpu.device import (
    DEVICE,
    CaptureRefused,
    Held,
    Misuse,
    held,
    place,
    plain,
    poison,
    tensors,
)

_SYNCHRONOUS = {
    *("item", "tolist", "equal", "allclose", "nonzero", "masked_select", "unique"),
    *("__bool__", "__float__", "__int__", "__index__", "__contains__", "__repr__", "__format__"),
}
"""Their result is the host's, or its size is known to the device alone: the host waits."""
_ON_HOST_ALONE = {"numpy", "__array__", "pin_memory"}
_OF_THE_HOST = {"tensor", "as_tensor"}
_INDEXED = {"__getitem__", "__setitem__", "index_put_"}
"""May have indices of the host."""


class OnCounterfeit(TorchFunctionMode):
    """Has `device="cuda"` make tensors of the counterfeit device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})


def operate(func: Any, args: Any, kwargs: Any) -> Any:
    name = getattr(func, "__name__", "")
    given = tensors(args, kwargs)
    on_device = [tensor for tensor in given if isinstance(tensor, Held)]
    if name == "__get__":
        return _property(func, args, bool(on_device))
    if name in ("to", "cpu", "cuda"):
        return _moved(args[0], *_wanted(name, args[1:], kwargs))
    if name == "copy_" and len(on_device) != len(given):
        return _copied(args[0], args[1], *args[2:], **kwargs)
    device = kwargs.get("device")
    device = torch.device(device) if device is not None else None
    if device is not None and device.type == "cuda":
        if device.index not in (None, DEVICE.index):
            raise Misuse(f"{name} on {device}: there is {DEVICE} only")
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif not on_device:
        return _on_host(func, args, kwargs)
    elif device is not None:
        raise Misuse(f"{name} from {DEVICE} to the host in passing")
    _check_places(name, args, kwargs)
    if name in _OF_THE_HOST and state.gpu.tape is not None:
        raise CaptureRefused(f"{name} of the host's numbers")
    if name in _SYNCHRONOUS:
        state.gpu.wait()
        return _called(func, args, kwargs)
    return on_gpu(func, args, kwargs, name)


def on_gpu(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    """As one operation of the device's, which a capture keeps."""
    gpu = state.gpu
    gpu.operations += 1
    tape = gpu.tape
    if tape is None:
        return _all_held(_called(func, args, kwargs))
    for target in _written(name, args, kwargs):
        tape.writes(target)
    outs = _all_held(_called(func, args, kwargs))
    tape.add(func, args, kwargs, outs)
    return outs


def _called(func: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = pytree.tree_map(plain, (args, kwargs))
    with torch._C.DisableTorchFunction():
        return func(*args, **kwargs)


def _all_held(value: Any) -> Any:
    # A size would come back as a mere tuple.
    return value if isinstance(value, torch.Size) else pytree.tree_map(held, value)


def _property(func: Any, args: Any, on_device: bool) -> Any:
    if on_device:
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return DEVICE
        if func == torch.Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        if func == torch.Tensor.is_cpu.__get__:  # type: ignore[attr-defined]
            return False
    found = func(*pytree.tree_map(plain, args))
    return held(found) if on_device else found


def _on_host(func: Any, args: Any, kwargs: Any) -> Any:
    if not kwargs.get("pin_memory"):
        return func(*args, **kwargs)
    found = func(*args, **(kwargs | {"pin_memory": False}))
    pinned, at = state.gpu.pinned, place(found)
    pinned.add(at)
    weakref.finalize(found.untyped_storage(), pinned.discard, at)
    return found


def _check_places(name: str, args: Any, kwargs: Any) -> None:
    if name in _ON_HOST_ALONE:
        raise TypeError(f"can't convert {DEVICE} device type tensor: {name}")
    if name in _INDEXED:
        # Indices of the host are copied there, which is one wait each.
        indices = [t for t in tensors(args[1]) if not isinstance(t, Held)]
        if indices and state.gpu.tape is not None:
            raise CaptureRefused(f"{name} by indices of the host")
        rest = tensors(args[:1], args[2:], kwargs)
    else:
        rest = tensors(args, kwargs)
    for tensor in rest:
        if not isinstance(tensor, Held) and tensor.dim():
            raise Misuse(f"{name} of tensors on {DEVICE} and one of {list(tensor.shape)} on cpu")


def _written(name: str, args: Any, kwargs: Any) -> list[torch.Tensor]:
    out = tensors(kwargs.get("out"))
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return out + tensors(args[0]) if in_place else out


def _wanted(name: str, rest: Any, kwargs: Any) -> tuple[torch.device | None, Any, bool]:
    """Device, dtype and whether the host goes on, as Tensor.to() takes them."""
    if name != "to":
        return torch.device(name), None, bool(kwargs.get("non_blocking", False))
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for value in rest:
        if isinstance(value, torch.Tensor):
            device, dtype = (DEVICE if isinstance(value, Held) else "cpu"), plain(value).dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, (torch.device, str)):
            device = value
    assert not any(isinstance(value, bool) for value in rest), "name what is not a device or dtype"
    return (
        torch.device(device) if device is not None else None,
        dtype,
        bool(kwargs.get("non_blocking", False)),
    )


def _moved(
    tensor: torch.Tensor, device: torch.device | None, dtype: Any, non_blocking: bool
) -> torch.Tensor:
    here = isinstance(tensor, Held)
    there = here if device is None else device.type == "cuda"
    dtype = dtype or plain(tensor).dtype
    if here and there:
        if dtype == plain(tensor).dtype:
            return tensor
        return on_gpu(torch.Tensor.to, (tensor, dtype), {}, "to")
    if not here and not there:
        return plain(tensor).to(dtype)
    # Converted where it is, then copied.
    if there:
        new = held(torch.empty(tensor.shape, dtype=dtype))
    else:
        if non_blocking:
            raise Misuse("to the host's pageable memory without waiting")
        new = torch.empty(tensor.shape, dtype=dtype)
    return _copied(new, tensor, non_blocking=non_blocking)


def _copied(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """Between the host and the device."""
    gpu = state.gpu
    host = source if isinstance(target, Held) else target
    apart = non_blocking and place(host) in gpu.pinned
    if gpu.tape is not None:
        raise CaptureRefused("a copy between host and device")
    if isinstance(target, Held):
        plain(target).copy_(source)
        if apart:
            _unchanged_until_read(source)
        return target
    if not apart:
        if non_blocking:
            raise Misuse("a copy to pageable memory that nobody waits for")
        gpu.wait()
        target.copy_(plain(source))
        return target
    came = plain(source).clone()
    poison(target)

    def end() -> None:
        target.copy_(came)

    gpu.under_way(end)
    return target


def _unchanged_until_read(source: torch.Tensor) -> None:
    """The device reads pinned memory when it comes to it."""
    sent = source.clone()

    def end() -> None:
        if not torch.equal(sent, source):
            raise Misuse("pinned memory was written before the device had read it")

    state.gpu.under_way(end)

"""The attention packages' functions as kernels of the counterfeit device: one operation each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

from tests.counterfeit_gpu.device import Held, Misuse, tensors
from tests.counterfeit_gpu.operations import on_gpu
from tests.nodes.model.attention import packages


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """All it is given must be there already; what it looks at in between costs the host nothing."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for tensor in tensors(args, kwargs):
            if not isinstance(tensor, Held):
                raise Misuse(f"{function.__name__} was given a tensor of the host")
        return on_gpu(function, args, kwargs, function.__name__)

    return call


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, under their own names."""
    three, two = _module("flash_attn_interface"), _module("flash_attn")
    vars(three)["flash_attn_with_kvcache"] = kernel(packages.flash_attn_with_kvcache_3)
    vars(two)["flash_attn_with_kvcache"] = kernel(packages.flash_attn_with_kvcache_2)
    vars(two)["flash_attn_varlen_func"] = kernel(packages.flash_attn_varlen_func)
    for module in (three, two):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    called = kernel(packages.varlen_attn)

    def varlen_attn(*args: Any, block_table: torch.Tensor, **kwargs: Any) -> Any:
        return called(*args, block_table=block_table, **kwargs)

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    # transformers looks for it.
    module.__spec__ = ModuleSpec(name, None)
    return module

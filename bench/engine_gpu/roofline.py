"""What a step must read and compute at least, and the ceilings of a device. Pure, but measuring."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from helix_mq.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured on the device: a large copy (read and written), and a large product."""

    bytes_per_s: float
    flop_per_s: float


def decode_bytes(config: ModelConfig, batch: int, context: int, itemsize: int) -> int:
    """Read by one step of `batch` decodes: all weights but the embedding, of which a row each, and
    the keys and values of `context` tokens each."""
    weights = config.num_layers * config.layer_weight_bytes(itemsize) + config.head_bytes(itemsize)
    kept = config.num_layers * config.kv_bytes_per_token_per_layer(itemsize) * context
    return weights + batch * (kept + config.hidden_size * itemsize)


def flops(config: ModelConfig, tokens: int, with_logits: int) -> int:
    """Of the products with weights; attention's own are left out."""
    layer = config.q_size + 2 * config.kv_size + config.q_size + 3 * config.intermediate_size
    body = 2 * config.num_layers * config.hidden_size * layer * tokens
    return body + 2 * config.hidden_size * config.vocab_size * with_logits


def floor_s(bytes_read: int, flop: int, ceilings: Ceilings) -> tuple[float, str]:
    """The least time, and which of the two makes it."""
    memory, compute = bytes_read / ceilings.bytes_per_s, flop / ceilings.flop_per_s
    return (memory, "memory") if memory >= compute else (compute, "compute")


def measure_ceilings(device: torch.device, dtype: torch.dtype, *, small: bool) -> Ceilings:
    """Of numbers drawn at random: zeros draw less power, and look faster."""
    numel, side = (1 << 20, 256) if small else (1 << 30, 8192)
    return Ceilings(_copy_rate(device, dtype, numel), _product_rate(device, dtype, side))


def _copy_rate(device: torch.device, dtype: torch.dtype, numel: int) -> float:
    source = torch.randn(min(numel, 1 << 24), device=device).to(dtype)
    source = source.repeat(max(1, numel // len(source)))
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_s(device, lambda: target.copy_(source))


def _product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_s(device, lambda: left @ right)


def best_s(device: torch.device, work: Callable[[], object], tries: int = 10) -> float:
    """Seconds of the fastest of some calls, to the device's last operation."""
    work()
    times = []
    for _ in range(tries):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-9)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""What a machine holds and what it gives by layers held: layers that fit, KV room, typical rate.

The rate is the published system's estimate of a node's capacity (Helix, ASPLOS 2025), less its
rounding to whole tokens, which makes its tables jump. Pure arithmetic on step times, memory sizes
and the mix of machines; index k-1 of every table is for k layers.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from helix_mq.errors import ConfigError
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import WeightForm
from solver.catalogue import Machine
from solver.objective import Points, StepTimes, Workload
from solver.roofline import DTYPE_BYTES

USABLE_MEMORY: Final = 0.8
"""Of the size on the box, for weights and KV cache: fitted to the published KV capacities. The
rest goes to the driver, error correction, activations and fragmentation."""
MIN_KV_TOKENS: Final = 16_384
"""Room per layer held, below which a machine counts as full: about sixteen usual requests."""
TYPICAL_KV_FILL: Final = 0.3
SPARE_LAYERS: Final = 1.2
"""Clusters whose usual load of layers is less than this many models load all they can."""
USUAL_SHARE: Final = 2 / 3
"""Of the layers that fit, held by a machine on average, where the cluster has layers to spare:
the published choices for two models on seven machine types are within one layer of it."""
ROUNDS: Final = 10


SIXTEEN_BITS: Final = WeightForm(DTYPE_BYTES)


def max_layers(
    config: ModelConfig,
    memory: Machine | int,
    weights_share: float = 1.0,
    form: WeightForm = SIXTEEN_BITS,
) -> int:
    """Layers that fit into `memory` (a machine, or bytes) with MIN_KV_TOKENS of KV room for each.

    The larger of embedding and head counts too: the slice may be the first or the last. With
    `weights_share` weights take no more than that share of all memory; the published clusters use
    one half. 0 where not one layer fits.
    """
    layer = form.layer_bytes(config)
    room = config.kv_bytes_per_token_per_layer(DTYPE_BYTES) * MIN_KV_TOKENS
    vram = _vram_bytes(memory)
    ends = max(form.embed_bytes(config), form.head_bytes(config))
    everything = form.slice_bytes(config, config.all_layers) + config.num_layers * room
    if everything <= USABLE_MEMORY * vram:
        fit = config.num_layers
    else:
        fit = min(config.num_layers - 1, int((USABLE_MEMORY * vram - ends) // (layer + room)))
    return max(0, min(fit, int(weights_share * vram // layer)))


def kv_token_layers(
    config: ModelConfig, memory: Machine | int, form: WeightForm = SIXTEEN_BITS
) -> tuple[float, ...]:
    """Token-layers of KV room in `memory` (a machine, or bytes) by layers held, up to `max_layers`.

    Of a slice from the middle of the model; all layers together also hold embedding and head.
    """
    vram = _vram_bytes(memory)
    per_token = config.kv_bytes_per_token_per_layer(DTYPE_BYTES)
    room: list[float] = []
    for held in range(1, max_layers(config, memory, form=form) + 1):
        weights = held * form.layer_bytes(config)
        if held == config.num_layers:
            weights = form.slice_bytes(config, config.all_layers)
        room.append((USABLE_MEMORY * vram - weights) // per_token)
    return tuple(room)


@dataclass(frozen=True, slots=True)
class TypeTables:
    """`count` machines of one type: step times, and token-layers of KV room by layers held.

    As many layers fit as `kv_token_layers` has entries.
    """

    step_times: StepTimes
    kv_token_layers: tuple[float, ...]
    count: int


def typical_tokens_per_s(
    config: ModelConfig,
    step_times_by_type: Mapping[str, StepTimes],
    counts: Mapping[str, int],
    vram_by_type: Mapping[str, int],
    workload: Workload | None = None,
    form_by_type: Mapping[str, WeightForm] | None = None,
) -> Mapping[str, tuple[float, ...]]:
    """Tokens per second of each machine type by layers held, in a cluster of these `counts`.

    Tables are as long as layers fit into `vram_by_type` (bytes), in 16 bits unless `form_by_type`
    says otherwise. ConfigError if a type has no step times or no memory size, or a count is
    negative.
    """
    forms = form_by_type or {}
    types: dict[str, TypeTables] = {}
    for name in sorted(counts):
        if name not in step_times_by_type or name not in vram_by_type:
            raise ConfigError(
                f"machine type {name}: needs step times and a memory size", param="type"
            )
        room = kv_token_layers(config, vram_by_type[name], forms.get(name, SIXTEEN_BITS))
        types[name] = TypeTables(step_times_by_type[name], room, counts[name])
    return typical_by_tables(config.num_layers, types, workload)


def typical_by_tables(
    num_layers: int, types: Mapping[str, TypeTables], workload: Workload | None = None
) -> Mapping[str, tuple[float, ...]]:
    """The same from tables of KV room, wherever they come from.

    Steady state: KV filled to TYPICAL_KV_FILL by requests of average length. A request spends the
    share s = k t / (k t + (L - k) t') of its round trip on a node with k of L layers, where t is
    the node's time per layer and token, t' the mean over all layers that the cluster holds. So the
    node's batch is s times the requests its KV room holds, at most an answer's length (beyond one
    prompt per step time grows as fast as tokens), and the rate is a request's tokens over its
    prefill and its part of the decode steps. t follows from the rate at the usual number of layers:
    ROUNDS fixed-point iterations.

    Rates fall with k where all machines are alike. In a mix, a machine faster than the mean fills
    larger batches as it holds more of the model, and its table can rise towards k = L.
    """
    workload = workload or Workload()
    for name, tables in types.items():
        if tables.count < 0:
            raise ConfigError(f"machine type {name}: count={tables.count} < 0", param="count")
    held = {name: types[name] for name in sorted(types) if types[name].kv_token_layers}
    if not held:
        return dict.fromkeys(sorted(types), ())
    cluster = _Cluster(num_layers, held, _usual_layers(num_layers, held), workload)
    layer_s = {
        name: seconds_at(tables.step_times.prefill, workload.input_tokens) / workload.input_tokens
        for name, tables in held.items()
    }
    for _ in range(ROUNDS):
        layer_s = {
            name: 1 / (layers * cluster.tokens_per_s(name, layers, layer_s))
            for name, layers in cluster.usual_layers.items()
        }
    return {
        name: tuple(
            cluster.tokens_per_s(name, k, layer_s)
            for k in range(1, len(types[name].kv_token_layers) + 1)
        )
        for name in sorted(types)
    }


def seconds_at(points: Points, size: float) -> float:
    """Linear between points, with the mean rate of the last one beyond it; seconds per layer."""
    if size >= points[-1][0]:
        return points[-1][1] * size / points[-1][0]
    after = max(1, bisect_right(points, size, key=lambda point: point[0]))
    (x0, y0), (x1, y1) = points[after - 1], points[after]
    return y0 + (y1 - y0) * (size - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True)
class _Cluster:
    num_layers: int
    types: Mapping[str, TypeTables]
    usual_layers: Mapping[str, int]
    workload: Workload

    def tokens_per_s(self, name: str, layers: int, layer_s: Mapping[str, float]) -> float:
        """Of a machine of type `name` with `layers` layers; `layer_s` is per token and layer."""
        tables, work = self.types[name], self.workload
        own_s = layers * layer_s[name]
        share = own_s / (own_s + (self.num_layers - layers) * self._mean_s(layer_s))
        request_tokens = work.input_tokens + work.output_tokens
        requests = TYPICAL_KV_FILL * tables.kv_token_layers[layers - 1] / layers / request_tokens
        batch = min(_mean_of_nonempty(requests * share), work.output_tokens)
        times = tables.step_times
        request_s = seconds_at(times.prefill, work.input_tokens)
        request_s += work.output_tokens / batch * seconds_at(times.decode, batch)
        return request_tokens / (layers * request_s)

    def _mean_s(self, layer_s: Mapping[str, float]) -> float:
        """Seconds per token and layer, over all layers that the cluster's machines hold."""
        there = any(tables.count for tables in self.types.values())
        weights = {
            name: (self.types[name].count if there else 1) * self.usual_layers[name]
            for name in self.types
        }
        total = math.fsum(weights[name] * layer_s[name] for name in self.types)
        return total / sum(weights.values())


def _mean_of_nonempty(mean_rows: float) -> float:
    """Rows per step where they arrive independently (Poisson) and empty steps take no time."""
    return mean_rows / -math.expm1(-mean_rows) if mean_rows > 0 else 1.0


def _usual_layers(num_layers: int, types: Mapping[str, TypeTables]) -> dict[str, int]:
    """Layers that a machine of each type holds, as far as it matters for others' round trips."""
    usual = {
        name: max(1, round(USUAL_SHARE * len(tables.kv_token_layers)))
        for name, tables in types.items()
    }
    if sum(types[name].count * usual[name] for name in types) >= SPARE_LAYERS * num_layers:
        return usual
    return {name: len(tables.kv_token_layers) for name, tables in types.items()}


def _vram_bytes(memory: Machine | int) -> int:
    return memory if isinstance(memory, int) else memory.vram_bytes

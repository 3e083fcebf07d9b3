"""Step times of one transformer layer on a machine, from datasheet figures.

A roofline per operation (Williams et al., CACM 2009): each part takes the longer of its arithmetic
and its memory traffic, parts add up. What a model gets of a datasheet is a handful of shares for
all machines and models together, fitted to published measurements of two models on seven machine
types. Measured tables (tables.py) are always better; memory and throughput are in typical.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from helix_mq.errors import ConfigError
from helix_mq.models.config import ModelConfig
from solver.catalogue import Machine
from solver.objective import Points, StepTimes, Workload

DTYPE_BYTES: Final = 2
"""Weights, keys, values and activations: 16 bits, as nodes keep them wherever that is faster."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is left of datasheet figures in practice.

    compute: share of FP16 peak in matrix products; low_power_compute: the same on boards of
    75 W or less, which clock down under load; memory: share of memory bandwidth;
    pcie_bytes_per_s: what an all-reduce moves per GPU and direction where GPUs meet over PCIe
    through host memory. These four are fitted. overhead_s: per layer and step, for launches and
    small operations, such that decodes of up to 8 requests are met on average; fitted with the
    others it comes out at 0.24 ms and so makes up for attention in large batches, which would be
    wrong on faster GPUs.
    nvlink_share: all-reduce as a share of NVLink's rate. No machine in the data has NVLink; 0.75
    is about what NVIDIA's nccl-tests report for large buffers.
    """

    compute: float = 0.74
    low_power_compute: float = 0.416
    memory: float = 0.77
    pcie_bytes_per_s: float = 3.85e9
    overhead_s: float = 0.05e-3
    nvlink_share: float = 0.75


CALIBRATED: Final = Calibration()
"""Mean relative error 9.4 % over all points of the published tables of two models and seven machine
types, all of which it has seen; with the overhead fitted too, 9.1 %. What fits that have not seen a
model or a GPU type make of it: `bench/planner_roofline.py`, docs/roofline.md."""


@dataclass(frozen=True, slots=True)
class LayerRoofline:
    """One layer of `config` on `machine`, with full attention even where a window bounds it."""

    config: ModelConfig
    machine: Machine
    calibration: Calibration = CALIBRATED

    def prefill_s(self, tokens: float, prompt_tokens: float = 750.0) -> float:
        """Seconds for a batch of `tokens` prompt tokens, of prompts `prompt_tokens` long.

        The layer's products, then causal attention over half a prompt on average, then what
        tensor parallelism exchanges. ConfigError unless both are positive and finite.
        """
        _positive("tokens", tokens)
        _positive("prompt_tokens", prompt_tokens)
        seen = min(tokens, prompt_tokens) / 2
        attention = self._longer(self._attention_flops(tokens, seen), self._kv_bytes(tokens))
        return self._products_s(tokens) + attention + self._exchange_s(tokens) + self._overhead_s

    def decode_s(self, batch: float, context_tokens: float) -> float:
        """Seconds for one token of each of `batch` requests with `context_tokens` in the cache.

        Weights are read once for all, keys and values once for each. ConfigError unless both are
        positive and finite.
        """
        _positive("batch", batch)
        _positive("context_tokens", context_tokens)
        attention = self._longer(
            self._attention_flops(batch, context_tokens), self._kv_bytes(batch * context_tokens)
        )
        return self._products_s(batch) + attention + self._exchange_s(batch) + self._overhead_s

    @property
    def _overhead_s(self) -> float:
        return self.calibration.overhead_s

    def _products_s(self, tokens: float) -> float:
        """All of the layer's weights: two operations per weight and token, or one read of each."""
        weights = self.config.layer_parameters
        return self._longer(2.0 * weights * tokens, float(weights * DTYPE_BYTES))

    def _attention_flops(self, tokens: float, seen_tokens: float) -> float:
        """Scores and weighted values: four operations per query element and token seen."""
        return 4.0 * self.config.q_size * seen_tokens * tokens

    def _kv_bytes(self, tokens: float) -> float:
        return tokens * self.config.kv_bytes_per_token_per_layer(DTYPE_BYTES)

    def _exchange_s(self, tokens: float) -> float:
        """Two all-reduces of the activations per layer (Shoeybi et al., Megatron-LM, 2019).

        A ring sends 2(n-1)/n of the buffer per GPU (NCCL's nccl-tests, PERFORMANCE.md).
        """
        count = self.machine.count
        if count == 1:
            return 0.0
        rate = self.calibration.pcie_bytes_per_s
        if self.machine.gpu.nvlink_bytes_per_s > 0:
            rate = self.calibration.nvlink_share * self.machine.gpu.nvlink_bytes_per_s
        buffer_bytes = tokens * self.config.activation_bytes_per_token(DTYPE_BYTES)
        return 2 * buffer_bytes * 2 * (count - 1) / count / rate

    def _longer(self, flops: float, moved_bytes: float) -> float:
        """Split over the machine's devices, whichever takes longer."""
        gpu, cal = self.machine.gpu, self.calibration
        share = cal.low_power_compute if gpu.low_power else cal.compute
        compute_s = flops / (gpu.fp16_flops_per_s * share)
        memory_s = moved_bytes / (gpu.memory_bytes_per_s * cal.memory)
        return max(compute_s, memory_s) / self.machine.count


PREFILL_SIZES: Final = (
    *(1, 16, 32, 64, 96, 128, 192, 256, 384, 512, 750, 1000, 1500, 2000, 3000, 4000),
    *(6000, 8000, 12000, 16000),
)
DECODE_SIZES: Final = (
    *(1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 100, 120, 160, 200, 240, 320, 400, 512),
)


def step_times(
    config: ModelConfig, machine: Machine, workload: Workload | None = None
) -> StepTimes:
    """The roofline as tables, with contexts as in the middle of an average answer.

    `workload` is the reference's (750 tokens in, 240 out) where it is not given.
    """
    workload = workload or Workload()
    layer = LayerRoofline(config, machine)
    context = workload.input_tokens + workload.output_tokens / 2
    prefill: Points = tuple(
        (float(n), layer.prefill_s(n, workload.input_tokens)) for n in PREFILL_SIZES
    )
    decode: Points = tuple((float(n), layer.decode_s(n, context)) for n in DECODE_SIZES)
    return StepTimes(prefill=prefill, decode=decode)


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name}={value} must be positive and finite", param=name)

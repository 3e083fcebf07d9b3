"""Settings of a node daemon: node.toml, `HELIX_MQ_*`, flags."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, Field, StringConstraints

from helix_mq.settings import ProcessSettings, Section

NodeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
RegionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{0,64}$")]


class BatchSection(Section):
    """How much runs in one step; see nodes.batching.BatchLimits."""

    prefill_tokens: int | None = Field(
        None, ge=1, le=65_536, description="of prompts per step; default: from measured step times"
    )
    prefill_objective_s: float | None = Field(
        None, gt=0, le=60, description="the longest that prompts may make a step"
    )
    max_rows: int = Field(256, ge=1, le=8_192)
    min_decodes: int = Field(4, ge=1, le=8_192)
    spread: float = Field(5.0, gt=0, le=1e6)


class MeasureSection(Section):
    """The node's own speed, measured before it joins: the router plans with it. Kept, so that the
    next start finds it."""

    at_start: bool = True
    max_seconds: float = Field(3.0, gt=0, le=600)


class MetricsSection(Section):
    """Prometheus metrics of this node, at http://HOST:PORT/metrics; without a port there are none.
    The router's have the most of them for all nodes."""

    host: str = "127.0.0.1"
    port: int | None = Field(None, ge=0, le=65_535)


class SecuritySection(Section):
    """CURVE keys. Without them only loopback addresses work, unless `insecure` is set."""

    key_file: Path | None = None
    router_public_key: str | None = None
    insecure: bool = False


class NodeSettings(ProcessSettings):
    name: NodeName = Field(default_factory=lambda: socket.gethostname().split(".")[0])
    region: RegionName = Field("", description="where it stands: `eu-west`, `rack-3`; for people")
    router: str = Field("tcp://127.0.0.1:7100", description="the router's control endpoint")
    listen: str = Field("tcp://127.0.0.1:0", description="where this node's data socket binds")
    advertise: str | None = Field(
        None, description="the data endpoint peers connect to, where it differs from `listen`"
    )
    model: Path = Field(description="Hugging Face folder or GGUF file")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "flash_attn", "torch_flash", "cpu"] = "auto"
    quantise: Literal["none", "int8", "int4"] = Field(
        "none",
        description="weights in fewer bits; the router's setting of this name must agree",
    )
    shares_device: str = Field(
        "auto",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="nodes of one name here compute on one device: batches go through them whole; "
        "auto finds out, own: no other node does",
    )
    memory: ByteSize | None = Field(
        None, description="for weights and KV cache together; default: most of what is free"
    )
    cuda_graphs: bool = Field(
        True, description="record decode steps and replay them; without effect on a CPU"
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        le=64,
        description="devices that compute a slice together, from `device` on; see docs/gpu.md",
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of the engine")
    heartbeat_s: float = Field(1.0, gt=0, le=60)
    link_down_after_s: float = Field(
        3.0,
        ge=0.1,
        le=3600,
        description="how long frames may wait for a peer that cannot be reached or is silent",
    )
    stuck_after_s: float = Field(
        120.0,
        ge=1,
        le=86_400,
        description="a device that is at one step for longer hangs: the watchdog may restart it",
    )
    drain_s: float = Field(30.0, ge=0, le=3600, description="longest wait for requests on exit")
    window: ByteSize = Field(ByteSize(64 * 1024 * 1024), description="credit per incoming link")
    batch: BatchSection = BatchSection()
    measure: MeasureSection = MeasureSection()
    metrics: MetricsSection = MetricsSection()
    security: SecuritySection = SecuritySection()

"""Settings of the router: router.toml, `HELIX_MQ_*`, flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ByteSize, Field, StringConstraints, model_validator

from helix_mq.errors import ConfigError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from helix_mq.messages.data import MAX_DRAFTS
from helix_mq.settings import ProcessSettings, Section
from helix_mq.token_return import TokenReturn
from router.link_forms import Activations
from router.prefix_settings import Share
from router.schedulers_base import Method
from router.weights_rule import Allowed


def parse_range(text: str) -> LayerRange:
    """`"0:12"` as layers 0 to 11; ConfigError says what is wrong with any other text."""
    first, colon, end = text.partition(":")
    if not (colon and first.strip().isdecimal() and end.strip().isdecimal()):
        raise ConfigError(
            f'layers {text!r} are not of the form "first:end", e.g. "0:12" for layers 0 to 11',
            param="placement.nodes",
        )
    try:
        return LayerRange(int(first), int(end))
    except ValueError as e:
        raise ConfigError(str(e), param="placement.nodes") from None


def _check_range(text: str) -> str:
    try:
        parse_range(text)
    except ConfigError as e:
        raise ValueError(e.message) from None
    return text


RangeText = Annotated[str, StringConstraints(max_length=32), AfterValidator(_check_range)]
NodeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class PlacementSection(Section):
    """`nodes` fixes each node's layers, `plan` names a file saved by `helix-mq plan --save` that
    does; without either a search places them by what the nodes have measured, or, where it finds
    nothing, by memory.

    A plan's cluster also gives the speeds and links that flows are computed with. The first search
    happens when `nodes_expected` nodes have joined.
    """

    nodes: dict[NodeName, RangeText] = Field(default_factory=dict)
    plan: Path | None = None
    nodes_expected: int = Field(1, ge=1, le=4096)

    @model_validator(mode="after")
    def _one_placement(self) -> Self:
        if self.nodes and self.plan is not None:
            raise ValueError("give either nodes or plan: both say which layers each node holds")
        return self

    def ranges(self) -> dict[NodeId, LayerRange]:
        return {NodeId(name): parse_range(text) for name, text in self.nodes.items()}


class ReplanSection(Section):
    """When nodes are given other layers while the cluster serves.

    `automatic` is on unless `[placement]` fixes the layers. `horizon_s`: a move must pay for itself
    within this time. `return_s`: how long a lost node may take to come back before its layers go to
    others. `drain_s`: how long requests may stay on slices that are to go, or on a leaving node.
    """

    automatic: bool | None = None
    horizon_s: float = Field(600.0, gt=0, le=30 * 86_400)
    settle_s: float = Field(10.0, ge=0, le=3600)
    every_s: float = Field(60.0, ge=0, le=86_400)
    return_s: float = Field(15.0, ge=0, le=3600)
    search_s: float = Field(10.0, gt=0, le=600)
    drain_s: float = Field(25.0, ge=0, le=3600)


class HttpSection(Section):
    """The OpenAI-compatible endpoint. `api_keys` are SHA-256 hex digests of allowed keys;
    `keys_file` holds more of them, with limits each, and is read again when it changes
    (`helix-mq keys api`)."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535)
    api_keys: tuple[str, ...] = ()
    keys_file: Path | None = None
    tls_cert: Path | None = Field(None, description="certificate chain (PEM); with it HTTP is TLS")
    tls_key: Path | None = Field(None, description="its key (PEM); both are read again on change")
    max_body: ByteSize = ByteSize(1024 * 1024)
    max_connections: int = Field(
        4096, ge=1, le=100_000, description="those without a request give way to new ones"
    )
    max_head: ByteSize = Field(ByteSize(64 * 1024), ge=1024, le=16 * 1024**2)
    max_headers: int = Field(200, ge=10, le=10_000)
    head_timeout_s: float = Field(30.0, gt=0, le=3600)
    body_timeout_s: float = Field(60.0, gt=0, le=3600)
    keep_alive_s: int = Field(75, ge=1, le=3600, description="between two requests")
    console: bool = Field(True, description="the web console at /console")


class AdmissionSection(Section):
    """Who may wait for room, and for how long: docs/overload.md."""

    max_waiting: int = Field(1024, ge=1, le=1_000_000)
    owner_share: float = Field(
        0.5, gt=0, le=1, description="of the queue, what the requests of one key may take"
    )
    background_share: float = Field(
        0.1, gt=0, le=0.9, description="of the tokens admitted while both classes wait"
    )
    max_wait_s: float | None = Field(
        30.0, gt=0, le=86_400, description="interactive requests that would wait longer are refused"
    )
    refuse_hopeless: bool = Field(
        True, description="refuse at once what would only wait for its deadline"
    )
    expected_output_tokens: int = Field(256, ge=1, le=1_000_000)
    default_deadline_s: float = Field(600.0, gt=0, le=86_400)
    kv_high_water: float = Field(0.9, gt=0, le=1)
    max_context: int | None = Field(None, ge=1, description="below the model's own context")


class SchedulingSection(Section):
    """How requests are given routes. `seed` is for methods that draw lots."""

    method: Method = "maxflow"
    seed: int = Field(0, ge=0, lt=2**63)
    prefer_near: bool = Field(
        True, description="max flow uses far links only for what near ones do not carry"
    )


class SpeculationSection(Section):
    """Tokens guessed from what stands in the text already, and verified in one pass through the
    pipeline: docs/speculation.md. They change no token, only when it comes."""

    enabled: bool = True
    max_drafts: int = Field(8, ge=1, le=MAX_DRAFTS, description="guessed tokens per pass")
    drafts_at_once: int = Field(
        64,
        ge=1,
        le=1_000_000,
        description="of all running requests together: with more requests there are none",
    )


class PrefixCacheSection(Section):
    """Beginnings of prompts that nodes have computed are not computed again: docs/prefix-cache.md.
    `share`: between requests of the same API key ("key"), of all ("all"), or of none ("off")."""

    share: Share = "key"


class LinksSection(Section):
    """`activations`: the form in which nodes send each other rows. `same` is the sender's compute
    dtype; narrower ones save bytes and may change tokens, `auto` on slow links only:
    docs/wire-formats.md."""

    activations: Activations = "same"


class JournalSection(Section):
    """Where accepted requests and their tokens are written down, so that a restart goes on with
    them. Without a path nothing is: what runs when the router dies is lost.

    `fsync`: "normal" survives the death of the process, "always" also a power cut, at the cost of
    one write to the disk per commit; "off" leaves it all to the system.
    """

    path: Path | None = None
    fsync: Literal["always", "normal", "off"] = "normal"
    keep_s: float = Field(
        3600.0, ge=0, le=30 * 86_400, description="how long ended requests can be fetched"
    )
    max_bytes: ByteSize = Field(
        ByteSize(1024**3), ge=16 * 1024**2, description="ended requests go early when it fills up"
    )


class SecuritySection(Section):
    """CURVE keys. Without them only loopback addresses work, unless `insecure` is set."""

    key_file: Path | None = None
    allow_file: Path | None = None
    insecure: bool = False


class TelemetrySection(Section):
    """OpenTelemetry spans, one per request and hop: only with an endpoint (docs/seeing.md)."""

    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://[^\s]+)?$",
        max_length=1024,
        description="a collector's OTLP address over HTTP, as in http://localhost:4318",
    )
    service_name: str = Field("helix-mq-router", min_length=1, max_length=128)


class RouterSettings(ProcessSettings):
    model: Path = Field(description="Hugging Face folder or GGUF file")
    model_name: str | None = Field(None, description="what clients call the model")
    clients: str = Field("tcp://127.0.0.1:7100", description="where SDK clients connect")
    control: str = Field("tcp://127.0.0.1:7101", description="where nodes register")
    data: str = Field("tcp://127.0.0.1:7102", description="where last hops send tokens")
    advertise_data: str | None = Field(
        None, description="the data endpoint nodes connect to, where it differs from `data`"
    )
    quantise: Allowed = Field(
        "none", description="bits of the nodes' weights, all alike, or `mixed`"
    )
    dead_after_s: float = Field(3.0, gt=0, le=600)
    recover_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="how long new requests wait after layers were lost, before they are refused",
    )
    link_down_after_s: float = Field(
        3.0, gt=0, le=600, description="how long a data link may be unconnected and still be used"
    )
    token_return: TokenReturn = Field(
        "auto",
        description="the way of a new token to the first hop: by the router, direct from the last "
        "hop, or direct where that is measurably shorter",
    )
    window: ByteSize = Field(ByteSize(64 * 1024 * 1024), description="credit per incoming link")
    http: HttpSection = HttpSection()
    placement: PlacementSection = PlacementSection()
    replan: ReplanSection = ReplanSection()
    scheduling: SchedulingSection = SchedulingSection()
    prefix_cache: PrefixCacheSection = PrefixCacheSection()
    speculation: SpeculationSection = SpeculationSection()
    links: LinksSection = LinksSection()
    admission: AdmissionSection = AdmissionSection()
    journal: JournalSection = JournalSection()
    telemetry: TelemetrySection = TelemetrySection()
    security: SecuritySection = SecuritySection()

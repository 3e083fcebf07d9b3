"""What a recorded run came to: throughput, latencies, goodput, use of machines. Pure.

Everything is of the recorder's window. A request is finished or failed by its end inside it; time
to first token is of the requests whose first token came inside. Names are the field's: TTFT, TPOT
(mean gap of one request), ITL (gaps of all), goodput.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.simulator.records import Recorder, RequestRecord
from bench.simulator.records_tallies import NodeTally, Series
from bench.simulator.stats_spread import Spread, of_histogram, of_values
from helix_mq.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a request must keep to count as good, in seconds; None: no such objective."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}={value} must be finite and more than 0", param=name)

    def met_by(self, record: RequestRecord) -> bool:
        """Whether a request finished, and in time. One with a single token has no TPOT to miss."""
        ttft_s = record.ttft_s
        if not record.ok or ttft_s is None:
            return False
        return (
            (self.ttft_s is None or ttft_s <= self.ttft_s)
            and (self.tpot_s is None or (record.tpot_s or 0.0) <= self.tpot_s)
            and (self.e2e_s is None or record.e2e_s <= self.e2e_s)
        )


@dataclass(frozen=True, slots=True)
class Goodput:
    """Requests that met the objectives: per second, as a share of all ended, and their tokens."""

    objectives: Objectives
    requests_per_s: float
    share: float
    output_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Held:
    """A number over time: its time average and its peak."""

    mean: float
    peak: float


@dataclass(frozen=True, slots=True)
class NodeUse:
    """One node. Shares are of the window, `prefill_share` of steps with prompt tokens.

    `decode_batch` is the mean of decode steps; `convoy_batch` what the average decoded token is in
    (rows weighted by rows). `queue_rows`: waiting for a step, on average; None if not recorded.
    """

    node: str
    utilisation: float
    prefill_share: float
    steps: int
    tokens_per_step: float
    decode_batch: float
    convoy_batch: float
    behind_prompts: float
    kv_mean: float
    kv_peak: float
    queue_rows: float | None


@dataclass(frozen=True, slots=True)
class LinkUse:
    src: str
    dst: str
    utilisation: float
    bytes_per_s: float
    frames: int


@dataclass(frozen=True, slots=True)
class Batches:
    """Over all nodes: rows and tokens of a step, by step and as the average token finds them.

    `convoy_share` = convoy_batch / requests running: 1 when all decodes travel in one batch, about
    1 / stages when they are spread. `behind_prompts`: of decodes' step time, the share in steps
    that also had prompt tokens. `waiting_for_prompts`: of all time in flight, the share that
    decodes wait at a node while it runs prompt tokens that were there before them.
    """

    decode_batch: float
    convoy_batch: float
    convoy_share: float
    tokens_per_step: float
    token_weighted_tokens: float
    behind_prompts: float
    waiting_for_prompts: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Means of equal parts of the window, `bin_s` each. KV as shares of pages."""

    start_s: float
    bin_s: float
    output_tokens_per_s: tuple[float, ...]
    running: tuple[float, ...]
    waiting: tuple[float, ...]
    kv: tuple[float, ...]
    kv_fullest: tuple[float, ...]
    utilisation: Mapping[str, tuple[float, ...]]
    """By node."""


@dataclass(frozen=True, slots=True)
class Report:
    """Rates per second of the window. `output_tokens` include first tokens, `decode_tokens` not."""

    warmup_s: float
    duration_s: float
    arrived: int
    finished: int
    failed: int
    unfinished: int
    reasons: Mapping[str, int]
    requests_per_s: float
    decode_tokens_per_s: float
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    total_tokens_per_s: float
    ttft: Spread
    tpot: Spread
    itl: Spread
    e2e: Spread
    goodput: Goodput | None
    batches: Batches
    running: Held
    waiting: Held
    in_system: Held
    kv_mean: float
    kv_peak: float
    nodes: tuple[NodeUse, ...]
    links: tuple[LinkUse, ...]
    timeline: Timeline
    direct: int | None = None
    """Of the requests that ended, those whose tokens went straight from the last hop to the first;
    None where that was not looked at."""

    def as_dict(self, *, timeline: bool = True) -> dict[str, Any]:
        """Ready for JSON. Latencies are in seconds, under `ttft_s`, `tpot_s`, `itl_s`, `e2e_s`."""
        plain = asdict(self)
        for name in ("ttft", "tpot", "itl", "e2e"):
            del plain[name]
            plain[f"{name}_s"] = getattr(self, name).as_dict()
        if not timeline:
            del plain["timeline"]
        return plain

    def describe(self) -> str:
        """A table for a terminal."""
        # Imported late: the text is built on this module's types.
        from bench.simulator.stats_text import describe

        return describe(self)


def report(recorder: Recorder, objectives: Objectives | None = None) -> Report:
    """Everything there is to say of a run. The recorder may go on afterwards, if its run does."""
    recorder.close()
    window = recorder.window
    duration_s = window.duration_s
    done = [r for r in recorder.records if r.ok]
    tpot = (t for r in done if (t := r.tpot_s) is not None)
    decoded = recorder.tokens - recorder.first_tokens
    nodes = tuple(_node_use(recorder, name) for name in sorted(recorder.nodes | recorder.kv))
    running = _held(recorder.running, duration_s)
    in_system = _held(recorder.in_system, duration_s)
    in_flight = running.mean if recorder.sampled else in_system.mean
    kv = [tally for _, tally in sorted(recorder.kv.items())]
    return Report(
        warmup_s=window.start_s,
        duration_s=duration_s,
        arrived=recorder.arrived,
        finished=len(done),
        failed=len(recorder.records) - len(done),
        unfinished=recorder.unfinished,
        reasons=dict(sorted(recorder.reasons.items())),
        requests_per_s=_per(len(done), duration_s),
        decode_tokens_per_s=_per(decoded, duration_s),
        output_tokens_per_s=_per(recorder.tokens, duration_s),
        prompt_tokens_per_s=_per(recorder.prompt_tokens, duration_s),
        total_tokens_per_s=_per(recorder.prompt_tokens + recorder.tokens, duration_s),
        ttft=of_values(recorder.ttft),
        tpot=of_values(tpot),
        itl=of_histogram(recorder.gaps),
        e2e=of_values(r.e2e_s for r in done),
        goodput=None if objectives is None else _goodput(recorder, objectives),
        batches=_batches(
            [t for _, t in sorted(recorder.nodes.items())],
            in_flight,
            _per(recorder.behind_s, in_flight * duration_s),
        ),
        running=running,
        waiting=_held(recorder.waiting, duration_s),
        in_system=in_system,
        kv_mean=_per(sum(recorder.kv_used_by_bin), sum(recorder.kv_total_by_bin)),
        kv_peak=max((tally.peak for tally in kv), default=0.0),
        nodes=nodes,
        links=_links(recorder),
        timeline=_timeline(recorder),
        direct=_direct(recorder),
    )


def _direct(recorder: Recorder) -> int | None:
    said = [r.direct for r in recorder.records if r.direct is not None]
    return sum(said) if said else None


def _per(amount: float, of: float) -> float:
    return amount / of if of > 0 else 0.0


def _held(series: Series, duration_s: float) -> Held:
    return Held(_per(series.integral, duration_s), series.peak)


def _goodput(recorder: Recorder, objectives: Objectives) -> Goodput:
    good = [r for r in recorder.records if objectives.met_by(r)]
    duration_s = recorder.window.duration_s
    return Goodput(
        objectives,
        _per(len(good), duration_s),
        _per(len(good), len(recorder.records)),
        _per(sum(r.tokens for r in good), duration_s),
    )


def _node_use(recorder: Recorder, name: str) -> NodeUse:
    duration_s = recorder.window.duration_s
    tally = recorder.nodes.get(name) or NodeTally(recorder.window)
    kv, queue = recorder.kv.get(name), recorder.queues.get(name)
    return NodeUse(
        node=name,
        utilisation=_per(tally.busy.integral, duration_s),
        prefill_share=_per(tally.prefill_s, duration_s),
        steps=tally.steps,
        tokens_per_step=_per(tally.decode_rows + tally.prefill_tokens, tally.steps),
        decode_batch=_per(tally.decode_rows, tally.decode_steps),
        convoy_batch=_per(tally.decode_rows_squared, tally.decode_rows),
        behind_prompts=_per(tally.mixed_row_s, tally.decode_row_s),
        kv_mean=_per(kv.total, kv.samples) if kv else 0.0,
        kv_peak=kv.peak if kv else 0.0,
        queue_rows=None if queue is None else _per(queue.integral, duration_s),
    )


def _links(recorder: Recorder) -> tuple[LinkUse, ...]:
    duration_s = recorder.window.duration_s
    return tuple(
        LinkUse(
            src,
            dst,
            _per(tally.busy_s, duration_s),
            _per(tally.sent_bytes, duration_s),
            tally.frames,
        )
        for (src, dst), tally in sorted(recorder.links.items())
    )


def _batches(nodes: Sequence[NodeTally], in_flight: float, waiting_for_prompts: float) -> Batches:
    rows = sum(t.decode_rows for t in nodes)
    tokens = rows + sum(t.prefill_tokens for t in nodes)
    convoy = _per(sum(t.decode_rows_squared for t in nodes), rows)
    return Batches(
        decode_batch=_per(rows, sum(t.decode_steps for t in nodes)),
        convoy_batch=convoy,
        convoy_share=_per(convoy, in_flight),
        tokens_per_step=_per(tokens, sum(t.steps for t in nodes)),
        token_weighted_tokens=_per(sum(t.tokens_squared for t in nodes), tokens),
        behind_prompts=_per(sum(t.mixed_row_s for t in nodes), sum(t.decode_row_s for t in nodes)),
        waiting_for_prompts=waiting_for_prompts,
    )


def _timeline(recorder: Recorder) -> Timeline:
    bin_s = recorder.window.bin_s

    def means(parts: Iterable[float]) -> tuple[float, ...]:
        return tuple(_per(part, bin_s) for part in parts)

    sampled = [total > 0 for total in recorder.kv_total_by_bin]
    kv = zip(recorder.kv_used_by_bin, recorder.kv_total_by_bin, strict=True)
    return Timeline(
        start_s=recorder.window.start_s,
        bin_s=bin_s,
        output_tokens_per_s=means(recorder.tokens_by_bin),
        running=means(recorder.running.by_bin),
        waiting=means(recorder.waiting.by_bin),
        kv=_carried([_per(used, total) for used, total in kv], sampled),
        kv_fullest=_carried(recorder.kv_peak_by_bin, sampled),
        utilisation={n: means(t.busy.by_bin) for n, t in sorted(recorder.nodes.items())},
    )


def _carried(values: Sequence[float], sampled: Sequence[bool]) -> tuple[float, ...]:
    """Parts without a sample, where they are shorter than its interval, take the last one's."""
    carried: list[float] = []
    for value, known in zip(values, sampled, strict=True):
        carried.append(value if known or not carried else carried[-1])
    return tuple(carried)

"""The charts of each benchmark, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chart:
    """`kind`: the benchmark, or the beginning of its name in whole words. `rows`: where the rows
    are in its file; `x`, `ys`, `group`: their columns, `a.b` for one in a group, `a+b` for two put
    together. `only`: rows with these values, in words. `members` (label, ending) makes rows of
    figures whose names are a y and an ending."""

    kind: str
    title: str
    rows: str
    x: str
    ys: tuple[str, ...]
    group: str = ""
    bars: bool = False
    xlabel: str = ""
    ylabel: str = ""
    log_x: bool = False
    log_y: bool = False
    only: tuple[tuple[str, str], ...] = ()
    members: tuple[tuple[str, str], ...] = ()


_PLAIN_TCP = (("transport", "tcp"), ("curve", "False"), ("hops", "1"))

CHARTS: tuple[Chart, ...] = (
    Chart(
        "planner targets",
        "max flow: published, ours, bound",
        "rows",
        "cluster",
        (
            "published_milp_tokens_per_s",
            "best_published_tokens_per_s",
            "objective_tokens_per_s",
            "upper_bound_tokens_per_s",
        ),
        bars=True,
        ylabel="tokens/s",
    ),
    Chart(
        "planner heuristics",
        "published heuristics, and ours of the same name",
        "rows",
        "cluster+method",
        ("published_placement_tokens_per_s", "ours_tokens_per_s"),
        bars=True,
        ylabel="tokens/s",
    ),
    Chart(
        "planner scale",
        "gap to the bound by size of the cluster",
        "points",
        "nodes",
        ("gap",),
        group="method+regions",
        xlabel="nodes",
        ylabel="gap",
        log_x=True,
    ),
    Chart(
        "planner scale",
        "time to plan",
        "points",
        "nodes",
        ("plan_s",),
        group="method+regions",
        xlabel="nodes",
        ylabel="s",
        log_x=True,
        log_y=True,
    ),
    Chart(
        "planner serving",
        "serving throughput: measured by the reference, estimated",
        "rows",
        "case",
        ("measured_tokens_per_s", "estimated_tokens_per_s"),
        bars=True,
        ylabel="decode tokens/s",
    ),
    Chart(
        "simulator reference",
        "decode throughput against the published simulator, share off",
        "results",
        "case",
        ("decode_tokens_per_s.error",),
        bars=True,
        ylabel="difference",
    ),
    Chart(
        "simulator trucks",
        "decode throughput by what is changed",
        "rows",
        "setup+placement+variant",
        ("decode_tokens_per_s",),
        bars=True,
        ylabel="tokens/s",
    ),
    Chart(
        "cluster",
        "decode throughput of an emulated cluster",
        "rows",
        "scheduler",
        (
            "live.decode_tokens_per_s",
            "simulated.decode_tokens_per_s",
            "with_overhead.decode_tokens_per_s",
        ),
        bars=True,
        ylabel="decode tokens/s",
    ),
    Chart(
        "engine",
        "decode throughput of the engine beside others, same weights",
        "rows",
        "case",
        ("decode_tokens_per_s",),
        group="system",
        bars=True,
        ylabel="decode tokens/s",
    ),
    Chart(
        "bus",
        "round trips over tcp, there and back",
        "rows",
        "size_bytes",
        ("trip_p50_us",),
        group="system",
        xlabel="bytes",
        ylabel="median, µs",
        log_x=True,
        log_y=True,
        only=_PLAIN_TCP,
    ),
    Chart(
        "bus",
        "messages per second over tcp",
        "rows",
        "size_bytes",
        ("messages_per_s",),
        group="system",
        xlabel="bytes",
        ylabel="1/s",
        log_x=True,
        log_y=True,
        only=_PLAIN_TCP,
    ),
    Chart(
        "bus",
        "round trips of the whole plane, by the way they go",
        "rows",
        "size_bytes",
        ("trip_p50_us",),
        group="way",
        xlabel="bytes",
        ylabel="median, µs",
        log_x=True,
        log_y=True,
        only=(("system", "plane"),),
    ),
    Chart(
        "serve check live",
        "two load clients on the same servers: mean time to first token",
        "rows",
        "server",
        ("mean_ttft_ms",),
        group="client",
        bars=True,
        ylabel="ms",
    ),
    Chart(
        "serve check live",
        "two load clients on the same servers: throughput",
        "rows",
        "server",
        ("output_throughput",),
        group="client",
        bars=True,
        ylabel="output tokens/s",
    ),
    Chart(
        "pipeline",
        "one node, and three on the same cores",
        "rates",
        "streams",
        ("one_tokens_per_s", "three_tokens_per_s"),
        bars=True,
        xlabel="streams at once",
        ylabel="decode tokens/s",
    ),
    Chart(
        "speculation",
        "time per token over links of 40 ms, with and without drafts",
        "rows",
        "text+drafts",
        ("tpot_s",),
        bars=True,
        ylabel="s",
    ),
    Chart(
        "token return",
        "time per token by way of the router, and straight from last to first hop",
        "rows",
        "placement+streams",
        ("tpot_s",),
        group="way",
        bars=True,
        ylabel="s",
    ),
    Chart(
        "quantised",
        "decode throughput by the weights' form",
        "rows",
        "form",
        ("decode_1_tokens_per_s", "decode_8_tokens_per_s", "decode_32_tokens_per_s"),
        bars=True,
        ylabel="decode tokens/s",
    ),
    Chart(
        "wire formats",
        "distance from full activations",
        "rows",
        "form",
        ("kl",),
        bars=True,
        ylabel="mean KL divergence",
    ),
    Chart(
        "overload",
        "tokens of good answers per second, phase by phase",
        "phases",
        "times_capacity",
        ("good_tokens_per_s", "served_tokens_per_s"),
        bars=True,
        xlabel="arrivals, times what the cluster serves",
        ylabel="tokens/s",
    ),
    Chart(
        "serve",
        "latencies",
        "",
        "name",
        ("mean", "p50", "p90", "p99"),
        bars=True,
        ylabel="ms",
        log_y=True,
        members=(
            ("TTFT", "_ttft_ms"),
            ("TPOT", "_tpot_ms"),
            ("ITL", "_itl_ms"),
            ("E2E", "_e2el_ms"),
        ),
    ),
)

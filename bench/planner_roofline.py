"""How far the roofline is from published measurements, and tables made of it from published ones.

    helix-mq bench planner roofline [--data ../shared/reference] [--out FILE.json]

Step times of one layer, for two models on seven machine types, prefill and decode by batch size;
then throughput and KV room by layers held, against the tables in all published cluster files that
list nodes. The fit behind solver.roofline is repeated without one model, or without one GPU type,
to predict what was left out: from constants that know nothing of the data, all of them fitted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.planner_common import machine_summary, write_results
from helix_mq.errors import ConfigError
from helix_mq.models.config import Family, ModelConfig
from solver.catalogue import machine
from solver.problem import Problem, ProblemNode
from solver.reference_json import read_reference_cluster, read_reference_profiles
from solver.roofline import CALIBRATED, Calibration, LayerRoofline, step_times
from solver.typical import (
    TypeTables,
    kv_token_layers,
    max_layers,
    typical_by_tables,
    typical_tokens_per_s,
)

CONTEXT_TOKENS = 750 + 240 / 2
"""In the middle of an average answer of the published workload."""
PROMPT_TOKENS = 750.0


def llama(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int) -> ModelConfig:
    return ModelConfig(
        family=Family.LLAMA,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        vocab_size=32000,
        max_context=4096,
        rms_eps=1e-5,
        rope_theta=1e4,
        eos_ids=(2,),
    )


MODELS: Mapping[str, ModelConfig] = {
    "llama70b": llama(80, 8192, 28672, 64, 8),
    "llama30b": llama(60, 6656, 17920, 52, 52),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One measured time of one layer, in seconds for a batch of tokens (prefill) or requests."""

    model: str
    machine: str
    phase: str
    batch: float
    seconds: float

    @property
    def gpu(self) -> str:
        return machine(self.machine).gpu.name


@dataclass(frozen=True, slots=True)
class Point:
    """A measured time and what the roofline says."""

    measured: Measured
    roofline_s: float

    @property
    def error(self) -> float:
        return abs(self.roofline_s / self.measured.seconds - 1)


def measurements(data: Path) -> list[Measured]:
    """All measured points but those at batch 0."""
    return [
        Measured(model, name, phase, batch, seconds)
        for model, machines in read_reference_profiles(data / "profiles.json").items()
        for name, times in machines.items()
        for phase, table in (("prefill", times.prefill), ("decode", times.decode))
        for batch, seconds in table
        if batch > 0 and seconds > 0
    ]


def predicted(measured: list[Measured], calibration: Calibration = CALIBRATED) -> list[Point]:
    layers = {
        key: LayerRoofline(MODELS[key[0]], machine(key[1]), calibration)
        for key in {(m.model, m.machine) for m in measured}
    }
    found = []
    for m in measured:
        layer = layers[m.model, m.machine]
        if m.phase == "prefill":
            found.append(Point(m, layer.prefill_s(m.batch, PROMPT_TOKENS)))
        else:
            found.append(Point(m, layer.decode_s(m.batch, CONTEXT_TOKENS)))
    return found


def points(data: Path, calibration: Calibration = CALIBRATED) -> list[Point]:
    """The roofline beside every measured point."""
    return predicted(measurements(data), calibration)


def medians(found: list[Point]) -> dict[str, float]:
    """Median error of each model and phase, and of all together."""
    groups: dict[str, list[float]] = {"all": [p.error for p in found]}
    for p in found:
        groups.setdefault(p.measured.model, []).append(p.error)
        groups.setdefault(f"{p.measured.model} {p.measured.phase}", []).append(p.error)
    return {name: statistics.median(errors) for name, errors in sorted(groups.items())}


SHARES = tuple(round(0.30 + 0.02 * i, 2) for i in range(36))
RATES = tuple(1e9 * (1 + 0.25 * i) for i in range(60))
OVERHEADS = tuple(round(1e-5 * i, 5) for i in range(41))
UNTUNED = Calibration(
    compute=1.0, low_power_compute=1.0, memory=1.0, pcie_bytes_per_s=15.75e9, overhead_s=0.0
)
"""Datasheets taken at their word, PCIe 3.0 x16 too: where fits start. Starting from CALIBRATED,
which has seen all points, would hand what it learned of the ones left out to the fit."""


def fitted(measured: list[Measured]) -> Calibration:
    """The constants with the least mean error on these points: one by one, to a standstill."""
    best = UNTUNED
    least = statistics.fmean(p.error for p in predicted(measured, best))
    improved = True
    while improved:
        improved = False
        for field, values in (
            ("compute", SHARES),
            ("low_power_compute", SHARES),
            ("memory", SHARES),
            ("pcie_bytes_per_s", RATES),
            ("overhead_s", OVERHEADS),
        ):
            for value in values:
                trial = replace(best, **{field: value})
                error = statistics.fmean(p.error for p in predicted(measured, trial))
                if error < least - 1e-9:
                    best, least, improved = trial, error, True
    return best


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A fit on all points but some, and its error on those and on its own.

    `calibrated_median` is CALIBRATED's error on the same left-out points, which it has seen.
    """

    left_out: str
    points: int
    median: float
    largest: float
    fitted_median: float
    calibrated_median: float
    calibration: Calibration


def held_out(measured: list[Measured], left_out: str, group: Callable[[Measured], str]) -> HeldOut:
    """Fits on the points of other groups than `left_out`, and predicts that one."""
    train = [m for m in measured if group(m) != left_out]
    test = [m for m in measured if group(m) == left_out]
    alone = fitted(train)
    errors = [p.error for p in predicted(test, alone)]
    return HeldOut(
        left_out=left_out,
        points=len(test),
        median=statistics.median(errors),
        largest=max(errors),
        fitted_median=statistics.median(p.error for p in predicted(train, alone)),
        calibrated_median=statistics.median(p.error for p in predicted(test)),
        calibration=alone,
    )


def cross_checks(measured: list[Measured]) -> Iterator[HeldOut]:
    """Without each model in turn, then without each GPU type (alone and in groups)."""
    for model in sorted({m.model for m in measured}):
        yield held_out(measured, model, lambda m: m.model)
    for gpu in sorted({m.gpu for m in measured}):
        yield held_out(measured, gpu, lambda m: m.gpu)


@dataclass(frozen=True, slots=True)
class TableError:
    """Errors of a table by layers held, against the published one of a machine type."""

    cluster: str
    machine: str
    what: str
    median: float
    largest: float


def clusters(data: Path) -> Iterator[tuple[str, str, Problem, dict[str, ProblemNode]]]:
    """Name, model, problem and one node of each type, of all cluster files that list nodes."""
    for path in sorted((data / "clusters").glob("*.json")):
        if json.loads(path.read_text("utf-8")).get("nodes") is None:
            continue  # six sub-clusters of het42 hold placements only
        problem = read_reference_cluster(path).problem
        one = {node.type_name: node for node in problem.nodes}
        yield path.stem, path.stem.rsplit("_", 1)[1], problem, dict(sorted(one.items()))


def table_errors(data: Path) -> Iterator[TableError]:
    """KV room from the memory size, and throughput twice: from measured step times and published
    KV room, so that the estimate of a node's capacity is judged alone; and from datasheets only,
    as plans get it for machines that nobody measured."""
    profiles = read_reference_profiles(data / "profiles.json")
    for setup, model, problem, one in clusters(data):
        config = MODELS[model]
        counts = {t: sum(n.type_name == t for n in problem.nodes) for t in one}
        estimate = typical_by_tables(
            problem.num_layers,
            {
                t: TypeTables(
                    profiles[model][t], node.kv_tokens_by_layers[: node.max_layers], counts[t]
                )
                for t, node in one.items()
            },
        )
        datasheet = typical_tokens_per_s(
            config,
            {t: step_times(config, machine(t)) for t in one},
            counts,
            {t: node.vram_bytes for t, node in one.items()},
        )
        for name, node in one.items():
            # Ours may hold more layers than the published limit; those have nothing to compare.
            for what, ours, theirs in (
                ("throughput, measured", estimate[name], node.tokens_per_s_by_layers),
                ("throughput, datasheet", datasheet[name], node.tokens_per_s_by_layers),
                ("KV room", kv_token_layers(config, node.vram_bytes), node.kv_tokens_by_layers),
            ):
                limit = node.max_layers
                pairs = list(zip(ours[:limit], theirs[:limit], strict=True))
                yield _table_error(setup, name, what, pairs)


@dataclass(frozen=True, slots=True)
class LayerLimit:
    """Layers that fit on a machine: published, ours, ours with weights in half of the memory."""

    model: str
    machine: str
    published: int
    ours: int
    half_of_memory: int


def layer_limits(data: Path) -> list[LayerLimit]:
    """One for each model and machine type in the cluster files."""
    found = {
        (model, name): LayerLimit(
            model=model,
            machine=name,
            published=node.max_layers,
            ours=max_layers(MODELS[model], node.vram_bytes),
            half_of_memory=max_layers(MODELS[model], node.vram_bytes, 0.5),
        )
        for _, model, _, one in clusters(data)
        for name, node in one.items()
    }
    return [found[key] for key in sorted(found)]


def _table_error(
    cluster: str, name: str, what: str, pairs: list[tuple[float, float]]
) -> TableError:
    errors = [abs(ours / theirs - 1) for ours, theirs in pairs if theirs > 0]
    return TableError(cluster, name, what, statistics.median(errors), max(errors))


@dataclass(frozen=True, slots=True)
class StepTimeError:
    model: str
    machine: str
    phase: str
    points: int
    median: float
    largest: float


def step_time_errors(found: list[Point]) -> list[StepTimeError]:
    """Median and largest error by model, machine and phase."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for p in found:
        key = (p.measured.model, p.measured.machine, p.measured.phase)
        groups.setdefault(key, []).append(p.error)
    return [
        StepTimeError(*key, len(errors), statistics.median(errors), max(errors))
        for key, errors in sorted(groups.items())
    ]


def report(data: Path) -> dict[str, object]:
    """Prints all tables; the same as a body of results."""
    measured = measurements(data)
    found = predicted(measured)
    rows = step_time_errors(found)
    print(f"{'model':9} {'machine':8} {'phase':8} {'points':>6} {'median':>7} {'largest':>8}")
    for row in rows:
        print(
            f"{row.model:9} {row.machine:8} {row.phase:8} {row.points:6} {row.median:7.1%} "
            f"{row.largest:8.1%}"
        )
    for name, value in medians(found).items():
        print(f"median, {name}: {value:.1%}")
    everything = fitted(measured)
    error = statistics.median(p.error for p in predicted(measured, everything))
    print(f"fitted on all points: median {error:.1%} ({everything})")
    checks = list(cross_checks(measured))
    for check in checks:
        print(
            f"fitted without {check.left_out}: median {check.median:.1%}, largest "
            f"{check.largest:.1%} of its {check.points} points ({check.calibration})"
        )
    tables = list(table_errors(data))
    for table in tables:
        print(
            f"{table.cluster:24} {table.machine:6} {table.what:21} median {table.median:6.1%} "
            f"largest {table.largest:6.1%}"
        )
    limits = layer_limits(data)
    for limit in limits:
        print(
            f"{limit.model} {limit.machine:6} layers: published {limit.published}, ours "
            f"{limit.ours}, with weights in half of the memory {limit.half_of_memory}"
        )
    return {
        "command": "helix-mq bench planner roofline",
        "machine": machine_summary(),
        "step_times": [asdict(row) for row in rows],
        "medians": medians(found),
        "fitted_on_all": {"median": error, "calibration": asdict(everything)},
        "held_out": [asdict(check) for check in checks],
        "tables": [asdict(table) for table in tables],
        "layers_that_fit": [asdict(limit) for limit in limits],
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="helix-mq bench planner roofline", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/reference"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(given)
    try:
        body = report(arguments.data)
    except (ConfigError, OSError) as e:
        parser.exit(2, f"{parser.prog}: {e}\n")
    if arguments.out is not None:
        write_results(arguments.out, body)


if __name__ == "__main__":
    main()

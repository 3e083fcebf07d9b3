"""How far the roofline is from published measurements, and tables made of it from published ones.

    python -m bench.planner_roofline [--data ../shared/reference] [--out FILE.json]

Step times of one layer, for two models on seven machine types, prefill and decode by batch size;
then throughput and KV room by layers held, against the tables in the published cluster files. The
fit behind solver.roofline is repeated on each model alone to predict the other.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.planner_common import machine_summary, write_results
from helix_mq.models.config import Family, ModelConfig
from solver.catalogue import machine
from solver.objective import StepTimes
from solver.reference_json import read_reference_cluster, read_reference_profiles
from solver.roofline import CALIBRATED, Calibration, LayerRoofline
from solver.typical import TypeTables, kv_token_layers, typical_by_tables

CONTEXT_TOKENS = 750 + 240 / 2
"""In the middle of an average answer of the published workload."""
PROMPT_TOKENS = 750.0
SETUPS = ("single24_llama70b", "cluster42_llama70b", "single24_llama30b", "cluster10_llama30b")


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
class Point:
    """One measured time of one layer and what the roofline says."""

    model: str
    machine: str
    phase: str
    batch: float
    measured_s: float
    roofline_s: float

    @property
    def error(self) -> float:
        return abs(self.roofline_s / self.measured_s - 1)


def points(data: Path, calibration: Calibration = CALIBRATED) -> list[Point]:
    """All measured points but those at batch 0."""
    found = []
    for model, machines in read_reference_profiles(data / "profiles.json").items():
        for name, times in machines.items():
            layer = LayerRoofline(MODELS[model], machine(name), calibration)
            for batch, seconds in times.prefill:
                if batch > 0 and seconds > 0:
                    guess = layer.prefill_s(batch, PROMPT_TOKENS)
                    found.append(Point(model, name, "prefill", batch, seconds, guess))
            for batch, seconds in times.decode:
                if batch > 0 and seconds > 0:
                    guess = layer.decode_s(batch, CONTEXT_TOKENS)
                    found.append(Point(model, name, "decode", batch, seconds, guess))
    return found


def medians(found: list[Point]) -> dict[str, float]:
    """Median error of each model and phase, and of all together."""
    groups: dict[str, list[float]] = {"all": [p.error for p in found]}
    for p in found:
        groups.setdefault(p.model, []).append(p.error)
        groups.setdefault(f"{p.model} {p.phase}", []).append(p.error)
    return {name: statistics.median(errors) for name, errors in sorted(groups.items())}


def mean_error(found: list[Point], model: str) -> float:
    return statistics.fmean(p.error for p in found if p.model == model)


SHARES = tuple(round(0.30 + 0.02 * i, 2) for i in range(34))
RATES = tuple(1e9 * (1 + 0.25 * i) for i in range(60))


def fitted(data: Path, model: str) -> Calibration:
    """The four constants with the least mean error on one model: by turns, to a standstill."""
    best = CALIBRATED
    least = mean_error(points(data, best), model)
    improved = True
    while improved:
        improved = False
        for field, values in (
            ("compute", SHARES),
            ("low_power_compute", SHARES),
            ("memory", SHARES),
            ("pcie_bytes_per_s", RATES),
        ):
            for value in values:
                trial = replace(best, **{field: value})
                error = mean_error(points(data, trial), model)
                if error < least - 1e-9:
                    best, least, improved = trial, error, True
    return best


@dataclass(frozen=True, slots=True)
class TableError:
    """Errors of a table by layers held, against the published one of a machine type."""

    cluster: str
    machine: str
    what: str
    median: float
    largest: float


def table_errors(data: Path) -> Iterator[TableError]:
    """Throughput (from measured step times and published KV room, so that only the estimate of a
    node's capacity is judged) and KV room (from the memory size)."""
    profiles = read_reference_profiles(data / "profiles.json")
    for setup in SETUPS:
        path = data / "clusters" / f"{setup}.json"
        if not path.is_file():
            continue
        problem = read_reference_cluster(path).problem
        model = setup.rsplit("_", 1)[1]
        one = {node.type_name: node for node in problem.nodes}
        counts = {t: sum(n.type_name == t for n in problem.nodes) for t in one}
        times: Mapping[str, StepTimes] = profiles[model]
        tables = {
            t: TypeTables(times[t], node.kv_tokens_by_layers[: node.max_layers], counts[t])
            for t, node in one.items()
        }
        rates = typical_by_tables(problem.num_layers, tables)
        for name in sorted(one):
            node = one[name]
            pairs = zip(rates[name], node.tokens_per_s_by_layers, strict=False)
            yield _table_error(setup, name, "throughput", list(pairs))
            room = kv_token_layers(MODELS[model], node.vram_bytes)
            pairs = zip(room, node.kv_tokens_by_layers[: node.max_layers], strict=False)
            yield _table_error(setup, name, "KV room", list(pairs))


def _table_error(
    cluster: str, name: str, what: str, pairs: list[tuple[float, float]]
) -> TableError:
    errors = [abs(ours / theirs - 1) for ours, theirs in pairs if theirs > 0]
    return TableError(cluster, name, what, statistics.median(errors), max(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/reference"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = points(arguments.data)
    print(f"{'model':9} {'machine':8} {'phase':8} {'points':>6} {'median':>7} {'largest':>8}")
    rows = []
    for key in sorted({(p.model, p.machine, p.phase) for p in found}):
        errors = [p.error for p in found if (p.model, p.machine, p.phase) == key]
        median, largest = statistics.median(errors), max(errors)
        rows.append(
            {
                "model": key[0],
                "machine": key[1],
                "phase": key[2],
                "median": median,
                "largest": largest,
                "points": len(errors),
            }
        )
        print(f"{key[0]:9} {key[1]:8} {key[2]:8} {len(errors):6} {median:7.1%} {largest:8.1%}")
    for name, value in medians(found).items():
        print(f"median, {name}: {value:.1%}")
    crossed = {}
    for model, other in (("llama70b", "llama30b"), ("llama30b", "llama70b")):
        alone = fitted(arguments.data, model)
        crossed[other] = medians(points(arguments.data, alone))[other]
        print(f"fitted on {model} alone, {other}: median {crossed[other]:.1%} ({alone})")
    tables = list(table_errors(arguments.data))
    for error in tables:
        print(
            f"{error.cluster:20} {error.machine:6} {error.what:10} median {error.median:6.1%} "
            f"largest {error.largest:6.1%}"
        )
    if arguments.out is not None:
        body: dict[str, object] = {
            "command": "python -m bench.planner_roofline",
            "machine": machine_summary(),
            "step_times": rows,
            "medians": medians(found),
            "fitted_on_the_other_model": crossed,
            "tables": [asdict(error) for error in tables],
        }
        write_results(arguments.out, body)


if __name__ == "__main__":
    main()

"""What was measured as one JSON object, and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from bench.engine.figures import decode_ratio, figures, ratio, roofline, same_answers
from bench.engine.run import Measured
from bench.engine.types import Case, System
from bench.simulator.stats_text import aligned
from helix_mq.models.config import ModelConfig

_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def body_of(
    measured: Measured,
    systems: Sequence[System],
    cases: Sequence[Case],
    config: ModelConfig,
    bytes_per_s: float | None,
) -> dict[str, object]:
    """Per case: each system's figures, and ours over theirs (above 1: we are faster); the figures
    once more as rows, for tables and plots."""
    ours = [s for s in systems if s.name.startswith("helix_mq") and s.name in measured.times]
    found: list[dict[str, object]] = []
    rows: list[dict[str, object]] = []
    for case in cases:
        entry: dict[str, object] = {"case": asdict(case)}
        by_system: dict[str, object] = {}
        for system in systems:
            rounds = measured.times.get(system.name, {}).get(case)
            if not rounds:
                continue
            of_case = figures(case, rounds)
            row: dict[str, object] = asdict(of_case)
            itemsize, step_s = _ITEM_BYTES.get(system.dtype), of_case.step_s
            if bytes_per_s is not None and itemsize is not None and step_s is not None:
                row["roofline"] = roofline(config, case, itemsize, step_s, bytes_per_s)
            by_system[system.name] = row
            rows.append({"case": case.name, "system": system.name, **row})
        entry["systems"] = by_system
        entry["ours_over_theirs"] = {
            f"{mine.name} over {other.name}": _compared(measured, case, mine, other)
            for mine in ours
            for other in systems
            if other not in ours and _both(measured, case, mine, other)
        }
        found.append(entry)
    return {"about": measured.about, "missing": measured.missing, "cases": found, "rows": rows}


def table_of(measured: Measured, systems: Sequence[System], cases: Sequence[Case]) -> str:
    rows = [["system", "case", "tokens/s", "decode tokens/s", "prefill tokens/s", "MiB"]]
    for case in cases:
        for system in systems:
            rounds = measured.times.get(system.name, {}).get(case)
            if rounds:
                f = figures(case, rounds)
                rows.append(
                    [
                        system.name,
                        case.name,
                        f"{f.tokens_per_s:.1f}",
                        f"{f.decode_tokens_per_s:.1f}" if f.decode_tokens_per_s else "?",
                        f"{f.prefill_tokens_per_s:.0f}",
                        f"{f.peak_bytes / 2**20:.0f}",
                    ]
                )
    lines = aligned(rows)
    if any("?" in row for row in rows):
        lines.append("?: prompts took up the whole time; ask for more --new-tokens or --rounds")
    lines += [f"not measured: {name}: {why}" for name, why in sorted(measured.missing.items())]
    return "\n".join(lines)


def _both(measured: Measured, case: Case, mine: System, other: System) -> bool:
    counts = [len(measured.times.get(s.name, {}).get(case, ())) for s in (mine, other)]
    return counts[0] == counts[1] > 0


def _compared(
    measured: Measured, case: Case, mine: System, other: System
) -> dict[str, float | None]:
    a, b = measured.times[mine.name][case], measured.times[other.name][case]
    return {
        "ratio": ratio(a, b),
        "decode_ratio": decode_ratio(a, b),
        "same_answers": same_answers(a[-1], b[-1]),
    }

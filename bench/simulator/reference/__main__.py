"""`helix-mq bench simulator reference CASE`: published cases in compatibility mode.

`--all` runs every case and writes ours beside the published and the measured figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.planner_common import write_results
from bench.simulator.reference.cases import CASES
from bench.simulator.reference.fidelity import Comparison, compare_all, report
from bench.simulator.reference.run import CaseResult, run_case
from helix_mq.errors import HelixError

RESULTS = Path("bench/results/simulator-fidelity.json")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="helix-mq bench simulator reference", description=__doc__)
    parser.add_argument("case", nargs="?", help=f"one of {', '.join(CASES)}")
    parser.add_argument("--data", type=Path, default=Path("../shared/reference"))
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--all", action="store_true", help="run and compare every case")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where --all writes")
    parser.add_argument("--processes", type=int, default=2, help="how many --all uses")
    options = parser.parse_args(arguments)
    if options.all == (options.case is not None):
        parser.error("give either a case or --all")
    if options.processes < 1:
        parser.error(f"--processes={options.processes}: must be 1 or more")
    try:
        if options.all:
            _compare(options.data, options.out, options.processes)
            return 0
        result = run_case(options.case, options.data)
    except HelixError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result.as_dict(), indent=1) if options.json else _sentence(result))
    return 0


def _compare(data: Path, out: Path, processes: int) -> None:
    comparisons = compare_all(data, processes=processes, progress=_print_comparison)
    results = report(comparisons, f"helix-mq bench simulator reference --all --out {out.name}")
    write_results(out, results)
    print(
        f"{results['within_target']} of {results['cases']} cases within the targets, "
        f"{results['identical']} identical"
    )


def _print_comparison(comparison: Comparison) -> None:
    mark = "=" if comparison.identical else " " if comparison.within_target else "!"
    medians = " ".join(
        f"{100 * error:+.1f}%"
        for error in (*comparison.prompt_median_errors, *comparison.decode_median_errors)
    )
    print(
        f"{mark} {comparison.name}: {comparison.ours.decode_tokens_per_s:.2f} against "
        f"{comparison.measured_decode_tokens_per_s:.2f} ({100 * comparison.throughput_error:+.2f}%)"
        f" medians {medians}; {comparison.ours.cpu_s:.1f} CPU s",
        flush=True,
    )


def _sentence(result: CaseResult) -> str:
    prompt, decode = result.prompt_latency, result.decode_latency
    return (
        f"{result.name}: decode {result.decode_tokens_per_s:.2f} tokens/s, prompts "
        f"{result.prompt_tokens_per_s:.1f} tokens/s; median latency prompt "
        f"{prompt.percentiles_s['p50']:.3f} s, decode {decode.percentiles_s['p50']:.3f} s; "
        f"{result.cpu_s:.1f} CPU s"
    )


if __name__ == "__main__":
    sys.exit(main())

"""`python -m bench.simulator.reference CASE`: one published case in compatibility mode."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.simulator.reference.run import run_case
from helix_mq.errors import HelixError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulator.reference", description=__doc__
    )
    parser.add_argument("case", help="a name as in published.json, or ex_* as in measured.json")
    parser.add_argument("--data", type=Path, default=Path("../shared/reference"))
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args(arguments)
    try:
        result = run_case(options.case, options.data, progress=None)
    except HelixError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(result.as_dict(), indent=1))
        return 0
    prompt, decode = result.prompt_latency, result.decode_latency
    print(
        f"{result.name}: decode {result.decode_tokens_per_s:.2f} tokens/s, prompts "
        f"{result.prompt_tokens_per_s:.1f} tokens/s; median latency prompt "
        f"{prompt.percentiles_s['p50']:.3f} s, decode {decode.percentiles_s['p50']:.3f} s; "
        f"{result.cpu_s:.1f} CPU s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

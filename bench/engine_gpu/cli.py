"""The suite from the command line; also by `python -m bench.engine_gpu`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from bench.live_run import say
from bench.planner_common import machine_summary, write_results


def run_gpu(*, device: str, tiny: bool, parts: str | None, out: Path | None, as_json: bool) -> None:
    """Runs the suite, prints it, and writes it where wanted, anew after each part. ConfigError in
    words."""
    from bench.engine_gpu.parts import PARTS
    from bench.engine_gpu.suite import Suite, check_device

    names = list(PARTS) if parts is None else parts.split(",")
    machine = machine_summary(("numpy", "torch", "pyzmq"))
    suite = Suite(check_device(device, tiny=tiny), tiny)
    body: dict[str, Any] = {}
    for found in suite.through(names, say):
        body = {"machine": machine, "suite": "gpu", **found}
        body["datasheet"] = datasheet(found["device"].get("name", ""))
        if out is not None:
            write_results(out, body)
    typer.echo(json.dumps(body) if as_json else "\n".join(lines(body)))


def datasheet(name: str) -> dict[str, float]:
    """What the maker says that a GPU of this name does, in 16 bits; empty where it is not known."""
    from router.machines import catalogued

    known = catalogued(f"cuda:0 {name}")
    if known is None:
        return {}
    return {"bytes_per_s": known.gpu.memory_bytes_per_s, "flop_per_s": known.gpu.fp16_flops_per_s}


def lines(body: dict[str, Any]) -> list[str]:
    """A line per part, and per case of those that have some."""
    device = body["device"]
    rows = []
    if device:
        rows.append(
            f"{device.get('name', device['type'])}, torch {device['torch']}: copies at "
            f"{device['copy_bytes_per_s'] / 1e9:,.0f} GB/s, products at "
            f"{device['product_flop_per_s'] / 1e12:,.1f} TFLOP/s"
        )
    if body.get("datasheet"):
        said = body["datasheet"]
        rows.append(
            f"    its datasheet: {said['bytes_per_s'] / 1e9:,.0f} GB/s, "
            f"{said['flop_per_s'] / 1e12:,.1f} TFLOP/s"
        )
    for name, part in body["parts"].items():
        passed = part.get("passed")
        verdict = "" if passed is None else "passed" if passed else "NOT passed"
        text = f"{name:13} {part['seconds']:6.1f} s  {verdict} {part.get('reason', '')}"
        rows.append(text.rstrip())
        rows += [f"    {line}" for line in _cases(name, part)]
    return rows


def _cases(name: str, part: dict[str, Any]) -> list[str]:
    if name == "attention":
        return [
            f"{title}: {b.get('reason') or 'computes attention'}"
            for title, b in part.get("backends", {}).items()
        ]
    if name == "parity":
        return [
            f"{way}: {w['tokens_equal']} of {w['tokens']} tokens, off by {_off(w['logits_off'])}"
            for way, w in part.get("ways", {}).items()
        ]
    if name == "decode":
        return [_decode_line(row) for row in part.get("batches", ())]
    if name == "prefill":
        return [
            f"{row['tokens']} tokens: {row['tokens_per_s']:,.0f} tokens/s, "
            f"{row['share_of_product_rate']:.0%} of the products' rate"
            for row in part.get("prompts", ())
        ]
    if name == "ranks" and "left_out" in part:
        return [f"one rank alone {part['alone']}; {part['left_out']}"]
    if name == "ranks" and "tokens" in part:
        equal, every, off = part["tokens_equal"], part["tokens"], _off(part["logits_off"])
        return [f"{equal} of {every} tokens, off by {off}"]
    return [f"ratio {part['ratio']:.2f}"] if "ratio" in part else []


def _off(number: float | None) -> str:
    """JSON has no form for what is no number."""
    return "what is no number" if number is None else f"{number:.1e}"


def _decode_line(row: dict[str, Any]) -> str:
    best = row.get("recorded", row)
    return (
        f"batch {row['batch']}: {best['tokens_per_s']:,.0f} tokens/s, {best['step_ms']:.2f} ms "
        f"(unrecorded {row['step_ms']:.2f}), {best['fraction']:.0%} of what {best['bound']} allows"
    )

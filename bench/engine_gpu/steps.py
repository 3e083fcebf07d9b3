"""Steps of the whole model: decodes against the memory's rate, prompts against the products'."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from bench.engine_gpu.models import random_slice, recorder_for
from bench.engine_gpu.roofline import decode_bytes, floor_s, flops
from bench.engine_gpu.setup import Part, Say, Setup
from nodes.model.slice import ModelSlice
from nodes.stepping import Span, Stepper, pages_for

_WANTED_FRACTION = 0.6


def decode(setup: Setup, say: Say) -> Part:
    """By batch: milliseconds plain and recorded, tokens/s, and the share of the roofline."""
    model, stepper = _model(setup, [[Span(setup.context, 1)] * n for n in setup.batches])
    rows: list[Part] = []
    for recorded in (False, True):
        if recorded and not model.record_decodes(recorder_for(setup.device)):
            break
        for at, batch in enumerate(setup.batches):
            say(f"decode: batch {batch}{', recorded' if recorded else ''}")
            step_s = _median_s(stepper, [Span(setup.context, 1)] * batch, setup.tries)
            if not recorded:
                rows.append(_against_roofline(setup, batch, step_s))
            else:
                rows[at]["recorded"] = _against_roofline(setup, batch, step_s)
    found: Part = {"batches": rows, "attention": model.attention.reason}
    if model.graphs is not None:
        statistics = model.graphs.statistics()
        found["recordings"] = {"replays": statistics.replays, "off": statistics.off}
    best = [max(r["fraction"], r.get("recorded", r)["fraction"]) for r in rows]
    bound = [r["bound"] for r in rows]
    found["passed"] = all(
        share >= _WANTED_FRACTION for share, by in zip(best, bound, strict=True) if by == "memory"
    )
    return found


def prefill(setup: Setup, say: Say) -> Part:
    """By length of one prompt: milliseconds, tokens/s, and the share of the products' rate."""
    _, stepper = _model(setup, [[Span(0, n)] for n in setup.prompts])
    rows: list[Part] = []
    for tokens in setup.prompts:
        say(f"prefill: {tokens} tokens")
        step_s = _median_s(stepper, [Span(0, tokens)], max(2, setup.tries // 4))
        rate = flops(setup.config, tokens, 1) / step_s
        rows.append(
            {
                "tokens": tokens,
                "step_ms": 1e3 * step_s,
                "tokens_per_s": tokens / step_s,
                "share_of_product_rate": rate / setup.ceilings.flop_per_s,
            }
        )
    return {"prompts": rows}


def _model(setup: Setup, cases: list[list[Span]]) -> tuple[ModelSlice, Stepper]:
    config = setup.config
    model = random_slice(config, config.all_layers, setup.device, setup.dtype, setup.attention())
    page = model.page_tokens()
    pages = max(pages_for(spans, config.num_layers, page) for spans in cases)
    return model, Stepper(model, model.new_cache(pages, page))


def _median_s(stepper: Stepper, spans: list[Span], tries: int) -> float:
    with stepper.step(spans) as step:
        # What is compiled, recorded or allocated once.
        for _ in range(2):
            step.run_s()
        run: Callable[[], float] = step.run_s
        return median(run() for _ in range(tries))


def _against_roofline(setup: Setup, batch: int, step_s: float) -> Part:
    config, itemsize = setup.config, setup.dtype.itemsize
    read = decode_bytes(config, batch, setup.context, itemsize)
    least_s, bound = floor_s(read, flops(config, batch, batch), setup.ceilings)
    return {
        "batch": batch,
        "context": setup.context,
        "step_ms": 1e3 * step_s,
        "tokens_per_s": batch / step_s,
        "least_ms": 1e3 * least_s,
        "bound": bound,
        "fraction": least_s / step_s,
    }

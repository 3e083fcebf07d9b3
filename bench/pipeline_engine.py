"""What an engine's step costs on the device's thread beside the model's forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from bench.engine.peers.with_helix import Program
from bench.samplings import SAMPLINGS

PROMPT_TOKENS = 32
FEW_TOKENS, MANY_TOKENS = 2, 66

P = ParamSpec("P")
R = TypeVar("R")


class Stopwatch:
    """Adds up the calling thread's processor time in functions, of which one may call another."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.calls = 0
        self._runs = False

    def around(self, function: Callable[P, R]) -> Callable[P, R]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._runs:
                return function(*args, **kwargs)
            self._runs, started_s = True, time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._runs = False
                self.spent_s += time.thread_time() - started_s
                self.calls += 1

        return timed


def engine_cost(model: Path, batch: int, dtype: str, sampling: str) -> dict[str, float | str]:
    """Processor microseconds per decode step of `batch` rows: in all, and outside the forward pass
    or the compiled step (plan, frames, and sampling where the compiled step leaves it to others).
    One thread and the whole model: tokens are sampled, by one of SAMPLINGS, no frame leaves.
    """
    job = {
        "folder": str(model),
        "device": "cpu",
        "dtype": dtype,
        "threads": 1,
        "batch": batch,
        "sampling": SAMPLINGS[sampling],
        "context": PROMPT_TOKENS + MANY_TOKENS + 16,
    }
    program, step, forward = Program(job), Stopwatch(), Stopwatch()
    engine, model_slice = program.engine, program.model_slice
    engine.run = step.around(engine.run)  # type: ignore[method-assign]
    model_slice.forward = forward.around(model_slice.forward)  # type: ignore[method-assign]
    decodes = model_slice.decodes(engine._cache)
    if decodes is not None:
        decodes._run = forward.around(decodes._run)
    prompts = [[(n * 131 + i * 7) % 200 + 5 for i in range(PROMPT_TOKENS)] for n in range(batch)]
    totals = []
    for new_tokens in (FEW_TOKENS, FEW_TOKENS, MANY_TOKENS):
        before = (step.spent_s, forward.spent_s, step.calls)
        program.generate(prompts, new_tokens)
        after = (step.spent_s, forward.spent_s, step.calls)
        totals.append([b - a for a, b in zip(before, after, strict=True)])
    # The first was to warm up; prompts take the same in the other two.
    run_s, forward_s, steps = (b - a for a, b in zip(totals[1], totals[2], strict=True))
    return {
        "batch": batch,
        "sampling": sampling,
        "step_us": run_s / steps * 1e6,
        "beside_forward_us": (run_s - forward_s) / steps * 1e6,
    }

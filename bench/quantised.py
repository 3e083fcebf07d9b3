"""What weights in 8 and 4 bits cost and save: perplexity, logits, memory, tokens/s, step by step.

    python -m bench.quantised [--model FOLDER] [--windows N] [--threads N] [--out FILE.json]

Each form is loaded alone, from the same folder. Distances are from the float32 model. Decodes have
128 tokens in the cache; each figure is the best of some steps, all forms taking turns.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.model_quality import distance, model_folder, own_text, perplexity, predict
from bench.planner_common import machine_summary, write_results
from helix_mq.models.config import ModelConfig
from helix_mq.models.quantisation import Quantisation
from nodes.model.slice import ModelSlice
from nodes.stepping import Span, Stepper

CPU = torch.device("cpu")
BATCHES = (1, 8, 32)
CONTEXT_TOKENS = 128
PREFILL_TOKENS = 256
ROUNDS = 5
OUT = Path(__file__).parent / "results" / "quantised.json"


@dataclass(frozen=True, slots=True)
class Form:
    name: str
    dtype: torch.dtype
    quantise: Quantisation


FORMS = (
    Form("float32", torch.float32, Quantisation.NONE),
    Form("bfloat16", torch.bfloat16, Quantisation.NONE),
    Form("int8", torch.bfloat16, Quantisation.INT8),
    Form("int4", torch.bfloat16, Quantisation.INT4),
    Form("int8 in float32", torch.float32, Quantisation.INT8),
    Form("int4 in float32", torch.float32, Quantisation.INT4),
)


def measure(folder: Path, windows: int) -> list[dict[str, object]]:
    config = ModelConfig.from_folder(folder)
    text = own_text(folder, windows)
    models = {form.name: _load(folder, config, form) for form in FORMS}
    speeds = _speeds(models)
    exact = None
    rows: list[dict[str, object]] = []
    for name, model in models.items():
        logits = predict([model], text, lambda hidden: hidden)
        exact = logits if exact is None else exact
        rows.append(
            {
                "form": name,
                "weight_bytes": model.weight_bytes,
                "perplexity": perplexity(text, logits),
                **asdict(distance(exact, logits)),
                **speeds[name],
            }
        )
        print(_line(rows[-1]), file=sys.stderr)
    return rows


def _load(folder: Path, config: ModelConfig, form: Form) -> ModelSlice:
    return ModelSlice.load(
        folder, config.all_layers, device=CPU, dtype=form.dtype, quantise=form.quantise
    )


def _speeds(models: dict[str, ModelSlice]) -> dict[str, dict[str, float]]:
    """tokens/s by batch, the best of ROUNDS; in turns, so that other load meets all alike."""
    steps = {f"decode_{n}_tokens_per_s": [Span(CONTEXT_TOKENS, 1)] * n for n in BATCHES}
    steps["prefill_tokens_per_s"] = [Span(0, PREFILL_TOKENS)]
    pages = max(BATCHES) * -(-(CONTEXT_TOKENS + 1) // 16)
    caches = {
        name: model.new_cache(len(model.layers) * pages, 16) for name, model in models.items()
    }
    best: dict[str, dict[str, float]] = {name: {} for name in models}
    for figure, spans in steps.items():
        tokens = sum(span.count for span in spans)
        for turn in range(ROUNDS + 1):
            for name, model in models.items():
                with Stepper(model, caches[name]).step(spans) as step:
                    took_s = step.run_s()
                if turn:
                    best[name][figure] = max(best[name].get(figure, 0.0), tokens / took_s)
    return best


def _line(row: dict[str, object]) -> str:
    return "  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="folder or GGUF file; default: the demo's")
    parser.add_argument("--windows", type=int, default=8, help="of 256 tokens of text")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = model_folder(options.model)
    text = own_text(folder, options.windows)
    write_results(
        options.out,
        {
            "benchmark": "quantised weights",
            "command": f"python -m bench.quantised --windows {options.windows}",
            "machine": machine_summary(("torch",)),
            "threads": options.threads,
            "load_before": os.getloadavg()[0],
            "model": folder.name,
            "text_sha256": text.digest,
            "text_tokens": text.tokens,
            "rows": measure(folder, options.windows),
        },
    )


if __name__ == "__main__":
    main()

"""What narrower activations on links do to a model in three parts, and what they save.

    python -m bench.wire_formats [--model FOLDER] [--windows N] [--out FILE.json]

Rows go through the very code that makes and reads frames, twice: between layers of the first and
second third, and of the second and last. Distances are from full rows, in float32.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from bench.model_quality import distance, model_folder, own_text, perplexity, predict, thirds
from bench.planner_common import machine_summary, write_results
from helix_mq.messages.data import token_bytes
from helix_mq.models.config import ModelConfig
from nodes.model.slice import ModelSlice
from nodes.wire_format import from_wire, to_wire

CPU = torch.device("cpu")
FORMS = ("", "bfloat16", "float16", "int8")
SPEED_TOKENS = 512
OUT = Path(__file__).parent / "results" / "wire-formats.json"


def measure(folder: Path, windows: int) -> list[dict[str, object]]:
    config = ModelConfig.from_folder(folder)
    text = own_text(folder, windows)
    slices = [
        ModelSlice.load(folder, layers, device=CPU, dtype=torch.float32)
        for layers in thirds(config)
    ]
    exact = None
    rows: list[dict[str, object]] = []
    for form in FORMS:
        logits = predict(slices, text, partial(_carried, form))
        exact = logits if exact is None else exact
        rows.append(
            {
                "form": form or "same (float32)",
                "bytes_per_token": token_bytes(form or "float32", config.hidden_size),
                "perplexity": perplexity(text, logits),
                **asdict(distance(exact, logits)),
                **_costs(config.hidden_size, form),
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def _carried(form: str, hidden: torch.Tensor) -> torch.Tensor:
    dtype, data = to_wire(hidden.contiguous(), form)
    return from_wire(data, dtype, hidden.shape[1]).float()


def _costs(width: int, form: str) -> dict[str, float]:
    """Microseconds per token of making and reading rows, the best of some, in one thread."""
    table = torch.randn(SPEED_TOKENS, width)
    sent: list[float] = []
    read: list[float] = []
    for _ in range(20):
        began_s = time.perf_counter()
        dtype, data = to_wire(table, form)
        made_s = time.perf_counter()
        from_wire(data, dtype, width)
        sent.append(made_s - began_s)
        read.append(time.perf_counter() - made_s)
    per_token = 1e6 / SPEED_TOKENS
    return {"send_us_per_token": min(sent) * per_token, "read_us_per_token": min(read) * per_token}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="folder or GGUF file; default: the demo's")
    parser.add_argument("--windows", type=int, default=8, help="of 256 tokens of text")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = model_folder(options.model)
    text = own_text(folder, options.windows)
    write_results(
        options.out,
        {
            "benchmark": "wire formats",
            "command": f"python -m bench.wire_formats --windows {options.windows}",
            "machine": machine_summary(("torch",)),
            "load_before": os.getloadavg()[0],
            "model": folder.name,
            "slices": 3,
            "text_sha256": text.digest,
            "text_tokens": text.tokens,
            "rows": measure(folder, options.windows),
        },
    )


if __name__ == "__main__":
    main()

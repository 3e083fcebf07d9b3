"""`helix-mq bench engine`: options into a job, the rounds, the result to where it was asked for."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.live_run import OutOption, say
from helix_mq.errors import ConfigError

_DTYPES = ("float32", "bfloat16", "float16")
_BESIDE = ("transformers", "llama-cpp", "vllm")


def engine(
    model: Annotated[
        Path | None,
        typer.Option(help="Model folder or GGUF file; default: the demonstration model."),
    ] = None,
    batches: Annotated[str, typer.Option(help="Prompts at a time, by commas.")] = "1,8,32",
    contexts: Annotated[str, typer.Option(help="Tokens of a prompt, by commas.")] = "64",
    new_tokens: Annotated[int, typer.Option(min=2, max=4096, help="Of each answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Of each; medians are given.")] = 3,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Of each program.")] = 2,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16, several by commas: of our engine.")
    ] = "float32,bfloat16",
    device: Annotated[str, typer.Option(help="cpu or cuda, for us and transformers.")] = "cpu",
    beside: Annotated[
        str, typer.Option(help="transformers, llama-cpp, vllm, by commas; or none.")
    ] = "transformers",
    python_transformers: Annotated[
        Path | None, typer.Option(help="The Python that has transformers; default: this one.")
    ] = None,
    python_llama: Annotated[
        Path | None, typer.Option(help="The Python that has llama-cpp-python.")
    ] = None,
    python_vllm: Annotated[Path | None, typer.Option(help="The Python that has vllm.")] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(help="Memory's GB/s, for the share that steps get of it."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="gpu: everything there is to measure on a GPU, with random weights."),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="With --suite: a trial of its parts, also on a CPU.")
    ] = False,
    parts: Annotated[
        str | None, typer.Option(help="With --suite: some of its parts only, by commas.")
    ] = None,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the engine: prefill and decode, beside other programs on the same weights."""
    if suite is not None:
        from bench.engine_gpu.cli import run_gpu

        if suite != "gpu":
            raise ConfigError(f"--suite {suite!r:.40} is unknown; use gpu", param="suite")
        # The default device is for measurements beside other programs.
        chosen = "cuda" if device == "cpu" and not tiny else device
        run_gpu(device=chosen, tiny=tiny, parts=parts, out=out, as_json=as_json)
        return
    from bench.ending import told_to_end
    from bench.engine.options import job_of, systems_of
    from bench.engine.prompts import prompts_of
    from bench.engine.report import body_of, table_of
    from bench.engine.run import Measured, measure
    from bench.engine.types import Case
    from bench.planner_common import machine_summary, write_results
    from helix_mq.models.config import ModelConfig

    cases = [
        Case(batch, context, new_tokens)
        for context in _counts(contexts, "contexts")
        for batch in _counts(batches, "batches")
    ]
    dtypes = _names(dtype, _DTYPES, "dtype")
    others = [] if beside == "none" else _names(beside, _BESIDE, "beside")
    if bandwidth is not None and not bandwidth > 0:
        raise ConfigError(f"--bandwidth {bandwidth} must be positive", param="bandwidth")
    job = job_of(model, cases, device, threads)
    pythons = {
        "transformers": python_transformers,
        "llama-cpp": python_llama,
        "vllm": python_vllm,
    }
    systems, missing = systems_of(dtypes, others, pythons, job)
    config = ModelConfig.from_folder(job.folder)
    machine = machine_summary(("numpy", "torch"))

    def body_so_far(measured: Measured) -> dict[str, object]:
        measured.missing.update(missing)
        done = [case for case in cases if any(case in by for by in measured.times.values())]
        return {
            # Without what names places on this machine.
            "command": f"helix-mq bench engine --batches {batches} --contexts {contexts} "
            f"--new-tokens {new_tokens} --rounds {rounds} --threads {threads} --dtype {dtype} "
            f"--beside {beside}",
            "machine": machine,
            "model": job.folder.name,
            "threads": threads,
            "device": device,
            "rounds": rounds,
            **body_of(measured, systems, done, config, bandwidth and bandwidth * 1e9),
        }

    def keep(measured: Measured) -> None:
        if out is not None:
            write_results(out, body_so_far(measured))

    with tempfile.TemporaryDirectory(prefix="helix-mq-bench-") as folder, told_to_end():
        measured = measure(
            systems,
            job,
            cases,
            lambda case: prompts_of(job.folder, case),
            rounds=rounds,
            folder=Path(folder),
            say=say,
            keep=keep,
        )
    keep(measured)
    body = body_so_far(measured)
    typer.echo(json.dumps(body) if as_json else table_of(measured, systems, cases))


def _counts(text: str, name: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or not all(0 < n <= 1 << 20 for n in counts):
        raise ConfigError(f"--{name} {text!r:.60} is no list such as 1,8,32", param=name)
    return counts


def _names(text: str, known: tuple[str, ...], name: str) -> list[str]:
    names = text.split(",")
    for one in names:
        if one not in known:
            raise ConfigError(
                f"--{name.replace('_', '-')} {one!r:.60} is unknown; use {', '.join(known)}",
                param=name,
            )
    return names

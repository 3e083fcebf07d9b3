"""The result file: what was run, by whom, on what, and the figures. Flat, with vllm's names."""

from __future__ import annotations

import shlex
import sys
import time
from importlib.metadata import version

from bench.planner_common import machine_summary
from bench.serve.options import in_words, vllm_names
from bench.serve.report import ServeReport
from bench.serve.run import Measured
from bench.serve.types import SERVED, Job

PACKAGES = ("httptools", "msgspec", "pyzmq", "uvloop")


def result_of(
    job: Job, found: ServeReport, measured: Measured, detailed: bool = False
) -> dict[str, object]:
    """Ready for JSON. If `detailed`, each request's figures in lists, in the order of arrival."""
    figures = found.as_dict()
    ours = figures.pop("helix_mq")
    assert isinstance(ours, dict)
    body: dict[str, object] = {
        "date": time.strftime("%Y%m%d-%H%M%S", time.gmtime()),
        **vllm_names(job.target, job.arrivals),
        "tokenizer_id": job.tokenizer or None,
        "num_prompts": found.totals.completed + found.totals.failed,
        **figures,
        "helix_mq": {
            "version": version("helix-mq"),
            "command": f"helix-mq {shlex.join(sys.argv[1:])}",
            "machine": machine_summary(PACKAGES),
            "workload": job.workload,
            "arrivals": in_words(job.arrivals),
            "seed": job.seed,
            "warmup": job.warmup,
            "deadline_s": job.deadline_s,
            "exact": job.exact,
            "temperature": job.temperature,
            "started_unix_s": measured.started_unix_s,
            **ours,
        },
    }
    if detailed:
        outcomes = measured.outcomes
        body["input_lens"] = [o.prompt_tokens for o in outcomes]
        body["output_lens"] = [o.tokens for o in outcomes]
        body["ttfts"] = [None if o.first_s is None else o.first_s - o.sent_s for o in outcomes]
        body["latencies"] = [o.ended_s - o.sent_s for o in outcomes]
        body["start_times"] = [o.sent_s for o in outcomes]
        body["errors"] = ["" if o.kind == SERVED else f"{o.kind}: {o.reason}" for o in outcomes]
    return body

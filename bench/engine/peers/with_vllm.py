"""vLLM, offline, without prefix caching (every prompt is computed) and in one process."""

from __future__ import annotations

import os
from typing import Any


class Program:
    def __init__(self, job: dict[str, Any]) -> None:
        # Set before the import, which reads them.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if job["device"] == "cpu":
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{job['threads'] - 1}")
            os.environ.setdefault("OMP_NUM_THREADS", str(job["threads"]))
        import vllm

        self._vllm = vllm
        self._dtype = job["dtype"]
        self._engine = vllm.LLM(
            model=job["folder"],
            dtype=job["dtype"],
            max_model_len=job["context"],
            max_num_seqs=job["batch"],
            enable_prefix_caching=False,
            disable_log_stats=True,
        )

    def about(self) -> dict[str, str]:
        import torch

        return {
            "vllm": str(self._vllm.__version__),
            "torch": str(torch.__version__),
            "dtype": self._dtype,
        }

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        parameters = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        results = self._engine.generate(asked, parameters, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]


def load(job: dict[str, Any]) -> Program:
    return Program(job)

"""llama.cpp by its C functions, which alone run several sequences in one batch."""

from __future__ import annotations

from typing import Any

import llama_cpp
import numpy as np


class Program:
    def __init__(self, job: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(job["gguf"].encode(), model_params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot read {job['gguf']}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = job["context"] * job["batch"]
        params.n_seq_max = job["batch"]
        params.n_batch = params.n_ubatch = self._most = 512
        params.n_threads = params.n_threads_batch = job["threads"]
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._batch = llama_cpp.llama_batch_init(self._most, 0, 1)

    def about(self) -> dict[str, str]:
        return {"llama-cpp-python": llama_cpp.__version__, "dtype": "the file's own"}

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        last = [len(ids) - 1 for ids in prompts]
        rows = [(i, at, token) for i, ids in enumerate(prompts) for at, token in enumerate(ids)]
        answers: list[list[int]] = [[] for _ in prompts]
        while rows:
            for start in range(0, len(rows), self._most):
                self._run(rows[start : start + self._most], last, answers)
            rows = []
            if len(answers[0]) < new_tokens:
                last = [n + 1 for n in last]
                rows = [(i, last[i], answer[-1]) for i, answer in enumerate(answers)]
        return answers

    def _run(
        self, rows: list[tuple[int, int, int]], last: list[int], answers: list[list[int]]
    ) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for at, (sequence, position, token) in enumerate(rows):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            batch.logits[at] = position == last[sequence]
        if llama_cpp.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp refused a batch")
        for at, (sequence, position, _) in enumerate(rows):
            if position == last[sequence]:
                logits = llama_cpp.llama_get_logits_ith(self._context, at)
                row = np.ctypeslib.as_array(logits, shape=(self._vocab_size,))
                answers[sequence].append(int(row.argmax()))


def load(job: dict[str, Any]) -> Program:
    return Program(job)

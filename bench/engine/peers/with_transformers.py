"""transformers: plain `generate`, as its documentation has it, with its default cache."""

from __future__ import annotations

from typing import Any

import torch
import transformers


class Program:
    def __init__(self, job: dict[str, Any]) -> None:
        if job["device"] == "cpu":
            torch.set_num_threads(job["threads"])
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            job["folder"], dtype=getattr(torch, job["dtype"])
        )
        self._model = loaded.to(job["device"]).eval()
        self._device = job["device"]
        # Without an end token every answer has its full length.
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def about(self) -> dict[str, str]:
        return {
            "transformers": str(transformers.__version__),
            "torch": str(torch.__version__),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "attention": str(self._model.config._attn_implementation),
        }

    def generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=self._device)
        out = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
        )
        tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return tokens


def load(job: dict[str, Any]) -> Program:
    return Program(job)

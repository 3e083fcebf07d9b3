"""The JSON shapes of OpenAI's answers: chunks, whole answers, usage, logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from helix_mq.models.tokenizer import Tokenizer
from router.service import Finished, TokenLogprob

Json = dict[str, Any]


def usage(finishes: Sequence[Finished], prompts: int) -> Json:
    """Token counts; each prompt counts once, however many choices it had."""
    per_prompt = max(1, len(finishes) // max(1, prompts))
    prompt_tokens = sum(f.prompt_tokens for f in finishes[::per_prompt])
    output_tokens = sum(f.output_tokens for f in finishes)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }


def chat_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> Json:
    def one(token: int, logprob: float) -> Json:
        text = tokenizer.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        {
            **one(item.token, item.logprob),
            "top_logprobs": [one(token, logprob) for token, logprob in item.top],
        }
        for item in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], offset: int
) -> Json:
    """`offset`: characters of the text before the first of these tokens."""
    tokens = [tokenizer.token_text(item.token) for item in logprobs]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [item.logprob for item in logprobs],
        "top_logprobs": [
            {tokenizer.token_text(token): logprob for token, logprob in item.top}
            for item in logprobs
        ],
        "text_offset": offsets,
    }


class ChatShape:
    """Chat completions; `whole` and `chunk` differ in the places OpenAI's do."""

    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def opening(self, index: int) -> Json:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob], at: int) -> Json:
        return {
            "index": index,
            "delta": {"content": text},
            "logprobs": chat_logprobs(self._tokenizer, logprobs) if logprobs else None,
            "finish_reason": None,
        }

    def closing(self, index: int, finish: Finished) -> Json:
        return {
            "index": index,
            "delta": {},
            "logprobs": None,
            "finish_reason": finish.finish_reason,
            "stop_reason": finish.stop_reason,
        }

    def whole(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: Finished
    ) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": chat_logprobs(self._tokenizer, logprobs) if logprobs else None,
            "finish_reason": finish.finish_reason,
            "stop_reason": finish.stop_reason,
        }


class CompletionShape:
    """Plain completions."""

    prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, tokenizer: Tokenizer, echoes: Sequence[str]) -> None:
        """`echoes`: per choice, the prompt to give back before its output, mostly empty."""
        self._tokenizer = tokenizer
        self._echoes = echoes

    def opening(self, index: int) -> Json | None:
        echo = self._echoes[index]
        return self.piece(index, echo, (), 0) if echo else None

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob], at: int) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": completion_logprobs(self._tokenizer, logprobs, at) if logprobs else None,
            "finish_reason": None,
        }

    def closing(self, index: int, finish: Finished) -> Json:
        return {
            "index": index,
            "text": "",
            "logprobs": None,
            "finish_reason": finish.finish_reason,
            "stop_reason": finish.stop_reason,
        }

    def whole(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: Finished
    ) -> Json:
        return {
            **self.piece(index, self._echoes[index] + text, logprobs, 0),
            "finish_reason": finish.finish_reason,
            "stop_reason": finish.stop_reason,
        }


Shape = ChatShape | CompletionShape

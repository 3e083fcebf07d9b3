"""Loads a model with one program and generates what it is asked for: JSON lines in, JSON lines out.

`python serve.py MODULE`: MODULE is a file beside this one with `load(job)`. The first line is the
job, answered with what was loaded; each further line is
`{"prompts": [[id, ...]], "new_tokens": n}`.
Only the standard library here: this file runs in the environment of whatever program it is.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from typing import Any, TextIO


def main(module: str) -> None:
    # What a program prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    program = importlib.import_module(module).load(job)
    say(answers, {"about": program.about(), **_memory()})
    for line in sys.stdin:
        request = json.loads(line)
        say(answers, timed(program, request["prompts"], request["new_tokens"]))


def timed(program: Any, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    """first_s: prefill and one token; total_s: prefill and `new_tokens`; each run by itself."""
    began_s = time.perf_counter()
    program.generate(prompts, 1)
    first_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    tokens = program.generate(prompts, new_tokens)
    total_s = time.perf_counter() - began_s
    return {"first_s": first_s, "total_s": total_s, "tokens": tokens, **_memory()}


def say(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")


def _memory() -> dict[str, int]:
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    main(sys.argv[1])

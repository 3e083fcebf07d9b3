"""One measured program in its process: started, asked case by case, stopped."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from bench.engine.types import Case, Job, System, Times
from helix_mq.errors import LocalError

_SERVE = Path(__file__).parent / "peers" / "serve.py"
_WORDS = 400
_CLOSING_S = 20.0


class PeerFailed(LocalError):
    """A measured program could not be started, or ended early; the text has its last words."""

    code = "peer_failed"


class Peer:
    def __init__(self, system: System, job: Job, log: Path) -> None:
        """Starts it and waits until it has loaded the model; PeerFailed when it cannot."""
        self.system = system
        self._log = log
        environment = dict(os.environ)
        if job.device == "cpu":
            environment["OMP_NUM_THREADS"] = str(job.threads)
        with log.open("wb") as words:
            self._process = subprocess.Popen(
                [str(system.python), str(_SERVE), system.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                env=environment,
            )
        answer = self._ask(
            {
                "folder": str(job.folder),
                "gguf": str(job.gguf) if job.gguf is not None else None,
                "device": job.device,
                "threads": job.threads,
                "batch": job.batch,
                "context": job.context,
                "dtype": system.dtype,
            }
        )
        self.about: dict[str, str] = answer["about"]

    def run(self, case: Case, prompts: list[list[int]]) -> Times:
        answer = self._ask({"prompts": prompts, "new_tokens": case.new_tokens})
        tokens = tuple(tuple(row) for row in answer["tokens"])
        if [len(row) for row in tokens] != [case.new_tokens] * case.batch:
            raise PeerFailed(f"{self.system.name} did not give {case.new_tokens} tokens per prompt")
        return Times(answer["first_s"], answer["total_s"], answer["peak_bytes"], tokens)

    def close(self) -> None:
        """Ends the process; safe to call twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            words = self._log.read_text("utf-8", "replace").strip()[-_WORDS:]
            raise PeerFailed(f"{self.system.name} ended with {self._process.returncode}: {words}")
        answer: dict[str, Any] = json.loads(line)
        return answer

"""What is measured, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Case:
    """`batch` prompts of `context` tokens each, `new_tokens` more for each."""

    batch: int
    context: int
    new_tokens: int

    @property
    def name(self) -> str:
        return f"batch {self.batch}, context {self.context}"


@dataclass(frozen=True, slots=True)
class System:
    """A program with a number format. module: in bench/engine/peers; python: what runs it."""

    name: str
    module: str
    dtype: str
    python: Path


@dataclass(frozen=True, slots=True)
class Job:
    """What all systems load. gguf: for programs that read such files; None without one."""

    folder: Path
    gguf: Path | None
    device: str
    threads: int
    batch: int
    """The largest of all cases, as `context`, the tokens of a prompt with its answer."""
    context: int


@dataclass(frozen=True, slots=True)
class Times:
    """One round. first_s: prefill and one token; total_s: prefill and all new tokens."""

    first_s: float
    total_s: float
    peak_bytes: int
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the rounds of one system in one case. tokens_per_s: new tokens over the whole
    time, prefill included; decode_tokens_per_s: without prefill and the first token of each. step_s
    and decode_tokens_per_s are None where prompts took so long that no time was left for answers:
    both are measured whole, and differ by more than the answers took."""

    tokens_per_s: float
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float
    step_s: float | None
    peak_bytes: int

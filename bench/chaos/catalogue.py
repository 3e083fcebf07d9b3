"""The requests that are run over and over, and what each must answer. Drawn from the seed alone.

The answers come from one process that holds the whole model and is never disturbed. Float sums
depend on how rows are batched, so a greedy request whose two best tokens ever lie closer together
than MIN_GAP is left out: for it more than one answer is right. What API answers do not show of that
is in bench.chaos.margins.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from helix_mq.client import Client
from helix_mq.errors import LocalError
from helix_mq.sdk.options import RequestOptions
from helix_mq.sdk.results import Completion

MIN_GAP = 1e-3
"""Between the log probabilities of the best two tokens; float32 sums differ by some 1e-5."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `temperature` 0 is greedy. Penalties make the whole history matter."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    ignore_eos: bool
    penalty: float = 1.0

    def options(self, deadline_s: float, *, logprobs: bool = False) -> RequestOptions:
        options = RequestOptions(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            repetition_penalty=self.penalty,
            deadline_s=deadline_s,
        )
        if logprobs:
            options["logprobs"], options["top_logprobs"] = True, 2
        return options


@dataclass(frozen=True, slots=True)
class Known:
    """A request with its only right answer."""

    ask: Ask
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str


def draw_asks(seed: int, count: int, vocab_size: int, longest_tokens: int) -> list[Ask]:
    """Half of them greedy, half seeded; prompts and outputs of mixed lengths, which together are at
    most `longest_tokens`."""
    draw = random.Random(f"asks/{seed}")
    asks = []
    for i in range(count):
        prompt_tokens = draw.choice((1, 3, 16, 17, 60, 150))
        output_tokens = draw.choice((8, 40, 120, 160, 240))
        asks.append(
            Ask(
                prompt=tuple(draw.randrange(vocab_size) for _ in range(prompt_tokens)),
                max_tokens=max(1, min(output_tokens, longest_tokens - prompt_tokens)),
                temperature=0.0 if i % 2 == 0 else draw.choice((0.7, 1.0, 1.3)),
                seed=draw.getrandbits(48),
                ignore_eos=draw.random() < 0.7,
                penalty=draw.choice((1.0, 1.0, 1.2)),
            )
        )
    return asks


async def answer_all(client: Client, asks: Sequence[Ask], at_once: int = 8) -> list[Known]:
    """Runs every request; gives those with one right answer. Raises what the router raises."""
    room = asyncio.Semaphore(at_once)

    async def run(ask: Ask) -> Known | None:
        async with room:
            options = ask.options(120.0, logprobs=ask.temperature == 0.0)
            done = await client.generate(ask.prompt, **options)
        if ask.temperature == 0.0 and _closest(done) < MIN_GAP:
            return None
        return Known(ask, done.token_ids, done.text, done.finish_reason)

    known = [k for k in await asyncio.gather(*(run(ask) for ask in asks)) if k is not None]
    if not known:
        raise LocalError("no request of the catalogue has one right answer: use another seed")
    return known


def _closest(done: Completion) -> float:
    """The smallest gap between the best two tokens of any step."""
    steps = done.logprobs or ()
    return min((step.top[0].logprob - step.top[1].logprob for step in steps), default=0.0)

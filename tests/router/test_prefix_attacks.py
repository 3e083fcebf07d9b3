"""Names of what others have computed: guessed, known, and misused by a member of the cluster."""

from __future__ import annotations

import random
from pathlib import Path

from helix_mq.messages import data
from helix_mq.prefix_blocks import name_blocks
from tests.attacker import attacker, node_data
from tests.cluster import Cluster, cluster, greedy
from tests.journey.test_attacks import CHAIN, SPEC, hidden_frame

PROMPT = tuple(range(150))


def rows(position: int, count: int, number: int, names: bytes) -> tuple[data.Row, ...]:
    row = data.Row((1 << 50) + number, 0, position, count, 0, 1, data.SAMPLE, 0, SPEC, names)
    return (row,)


def refused(c: Cluster, node: str) -> list[str]:
    worker = c.daemons[node].worker
    assert worker is not None
    return [item.code for item in worker._teller.refusals]


async def test_guessed_names_lead_nowhere(tiny_folder: Path) -> None:
    draw = random.Random(1)
    async with cluster(tiny_folder, CHAIN) as c, attacker(c, node_data(c, "b"), "a") as member:
        wanted = (await c.run(greedy(PROMPT, 5))).token_ids
        guesses = [
            # Chance, another key, and the right tokens under a key of one's own.
            *(draw.randbytes(16) for _ in range(20)),
            name_blocks(b"", "", PROMPT)[:16],
            name_blocks(b"k" * 32, "", PROMPT)[:16],
        ]
        for number, name in enumerate(guesses):
            member.say(*hidden_frame(c, rows(64, 1, number, name), 0.5))
        await c.until(lambda: len(refused(c, "b")) == len(guesses), "all were refused")
        assert set(refused(c, "b")) == {"prefix_missing"}
        again = await c.run(greedy(PROMPT, 5))
        assert (again.token_ids, again.finish.cached_tokens) == (wanted, 128)


async def test_what_is_no_number_is_not_gone_on_from(tiny_folder: Path) -> None:
    """From one who knows the name: the other requests compute it anew."""
    async with cluster(tiny_folder, CHAIN) as c, attacker(c, node_data(c, "b"), "a") as member:
        wanted = (await c.run(greedy(PROMPT, 5))).token_ids
        names = name_blocks(c.app.core._prefixes._settings.key, "", PROMPT)
        member.say(*hidden_frame(c, rows(0, 128, 0, names), float("nan")))
        await c.until(lambda: refused(c, "b") == ["logits_not_finite"], "it was refused")
        again = await c.run(greedy(PROMPT, 5))
        assert (again.token_ids, again.finish.reroutes) == (wanted, 0)
        assert again.finish.cached_tokens == 0
        third = await c.run(greedy(PROMPT, 5))
        assert (third.token_ids, third.finish.cached_tokens) == (wanted, 128)


async def test_rows_do_not_write_where_others_read(tiny_folder: Path) -> None:
    """A sequence that goes on from a prefix cannot be taken back into it."""
    async with cluster(tiny_folder, CHAIN) as c, attacker(c, node_data(c, "b"), "a") as member:
        wanted = (await c.run(greedy(PROMPT, 5))).token_ids
        names = name_blocks(c.app.core._prefixes._settings.key, "", PROMPT)
        member.say(*hidden_frame(c, rows(128, 3, 0, names[16:]), 0.5))
        member.say(*hidden_frame(c, rows(64, 3, 0, names[:16]), 7.0))
        await c.until(lambda: "out_of_order" in refused(c, "b"), "the second was refused")
        again = await c.run(greedy(PROMPT, 5))
        assert (again.token_ids, again.finish.cached_tokens) == (wanted, 128)
        b = c.daemons["b"].worker
        assert b is not None
        for seq in b._ledger.sequences():
            b._close(seq)

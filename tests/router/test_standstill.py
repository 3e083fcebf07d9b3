"""A router that was suspended: what its nodes have sent meanwhile it has not read yet."""

from __future__ import annotations

from pathlib import Path

from tests.cluster import cluster, greedy

AWAY_S = 100.0


async def test_nodes_stay_when_the_router_itself_stood_still(tiny_folder: Path) -> None:
    layers = {"a": "0:3", "b": "3:6"}
    async with cluster(tiny_folder, layers, dead_after_s=20.0, wait=False) as c:
        for name in layers:
            await c.kill(name)
        for name in layers:
            # Rare beats: none comes between what happens here and the next look.
            await c.add_node(name, heartbeat_s=5.0)
        await c.ready()
        members = c.app.core.cluster.membership
        for member in members:
            member.last_heard_s -= AWAY_S
        c.app.ticked_s -= AWAY_S
        before_s = c.app.ticked_s
        await c.until(lambda: c.app.ticked_s != before_s, "it has looked")
        assert len(members.serving()) == 2
        assert (await c.run(greedy((1, 2, 3), 5))).finish.output_tokens == 5
        await c.quiet()

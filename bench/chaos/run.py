"""One chaos run: the right answers first, then rounds of faults under load, then the books.

A run never stops at the first broken guarantee; it stops when the cluster does not come back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.chaos.catalogue import Ask, Known, answer_all, draw_asks
from bench.chaos.cluster import LAYOUT, ChaosCluster, Plan, slices_of
from bench.chaos.faults import Kind, Mix, Round, rounds
from bench.chaos.load import Load
from bench.chaos.logs import alarms
from bench.chaos.margins import with_one_answer
from bench.chaos.placing import held_now
from bench.chaos.report import ChaosReport, RoundReport
from bench.chaos.strike import Marks, strike
from bench.chaos.watch import Watch
from helix_mq.client import Client
from helix_mq.errors import HelixError, LocalError
from helix_mq.models.config import ModelConfig
from helix_mq.token_return import TokenReturn

START_S = 120.0
WHOLE_S = 60.0
SETTLE_S = 60.0
"""Requests that were under way when a fault came have ended by then, or hang."""
IDLE_S = 20.0
DEADLINE_S = 120.0
SOLO = {"solo": (0.0, 1.0)}
FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}
"""Of compiled operations a CPU node keeps: see docs/chaos.md, "Nothing grows"."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """Ends after `rounds` or `minutes`, whichever is given; `only`: these kinds of faults."""

    model: Path
    folder: Path
    seed: int = 1
    rounds: int | None = None
    minutes: float | None = None
    streams: int = 32
    catalogue: int = 48
    only: tuple[Kind, ...] = ()
    node_memory: str = "160MiB"
    """Room for two slices of the tiny model with all the KV cache it can use."""
    journal: bool = False
    """The router keeps one, and is killed, too."""
    token_return: TokenReturn = "auto"


Say = Callable[[str], None]
Keep = Callable[[ChaosReport], None]


class ChaosRun:
    """`run` once. `say` gets a line when something has happened."""

    def __init__(self, options: ChaosOptions, say: Say, keep: Keep = lambda _report: None) -> None:
        """`keep` is told after each round what there is."""
        self.options = options
        self._say = say
        self._keep = keep
        self._config = ModelConfig.from_folder(options.model)
        self._marks = Marks()
        self._watch = Watch()
        self._rounds: list[RoundReport] = []
        self._started_s = 0.0

    async def run(self) -> ChaosReport:
        options = self.options
        catalogue = await self._right_answers()
        ways = f'token_return = "{options.token_return}"\n'
        plan = self._plan(slices_of(self._config.num_layers, LAYOUT), ways)
        self._started_s = time.monotonic()
        cluster = ChaosCluster(plan, options.folder / "cluster")
        try:
            await cluster.start()
            await cluster.whole(START_S)
            async with Client(cluster.clients) as client:
                before = await self._undisturbed(client, catalogue)
                load = Load(client, catalogue, options.streams, options.seed, DEADLINE_S)
                load.start()

                def keep() -> None:
                    self._keep(self._report(plan, catalogue, load, before, None))

                try:
                    await self._all_rounds(cluster, load, keep)
                    await self._finish(cluster, load)
                finally:
                    await load.abandon()
                after = await self._undisturbed(client, catalogue)
        finally:
            codes = await cluster.stop()
        broken = self._marks.broken
        broken += [f"{n} ended with code {c} after SIGTERM" for n, c in codes.items() if c]
        broken += self._watch.growth()
        for name, child in cluster.children.items():
            broken += alarms(name, child.log.read_text(errors="replace"))
        return self._report(plan, catalogue, load, before, after)

    def _plan(self, slices: dict[str, str], settings: str) -> Plan:
        options = self.options
        # Requests of a slow machine may take longer than they may stay on old slices by default.
        settings += "replan.drain_s = 60\n"
        return Plan(
            options.model,
            slices,
            options.node_memory,
            settings,
            journal=options.journal,
            environment=FEW_KERNELS,
        )

    async def _right_answers(self) -> list[Known]:
        """From one node that holds everything, in a cluster of its own."""
        options = self.options
        self._say("computing the right answers on one undisturbed node")
        asks = self._asks()
        # Token by token, so that the right answers lean on nothing that is tried here.
        plain = 'token_return = "router"\nspeculation.enabled = false\nprefix_cache.share = "off"\n'
        plan = self._plan(slices_of(self._config.num_layers, SOLO), plain)
        async with ChaosCluster(plan, options.folder / "solo") as alone:
            await alone.whole(START_S)
            async with Client(alone.clients) as client:
                known = await answer_all(client, asks)
        return await asyncio.to_thread(with_one_answer, options.model, known)

    def _asks(self) -> list[Ask]:
        longest = min(self._config.max_context, 512)
        options = self.options
        return draw_asks(options.seed, options.catalogue, self._config.vocab_size, longest)

    async def _undisturbed(self, client: Client, catalogue: list[Known]) -> float:
        """Runs the whole catalogue without a fault, each answer checked; tokens/s."""
        started_s = time.monotonic()
        room = asyncio.Semaphore(self.options.streams)

        async def run(known: Known) -> None:
            async with room:
                done = await client.generate(known.ask.prompt, **known.ask.options(DEADLINE_S))
            if (done.token_ids, done.text) != (known.token_ids, known.text):
                self._marks.broken.append("an undisturbed request got another answer")

        await asyncio.gather(*(run(known) for known in catalogue))
        tokens = sum(len(k.token_ids) for k in catalogue)
        return tokens / (time.monotonic() - started_s)

    async def _all_rounds(
        self, cluster: ChaosCluster, load: Load, keep: Callable[[], None]
    ) -> None:
        options = self.options
        for round_ in rounds(self._mix(cluster)):
            done = len(self._rounds)
            minutes = (time.monotonic() - self._started_s) / 60
            if options.rounds is not None and done >= options.rounds:
                return
            if options.minutes is not None and minutes >= options.minutes:
                return
            try:
                await self._round(cluster, load, round_)
                keep()
            except HelixError as e:
                self._marks.broken.append(f"round {round_.number} ({round_}): {e}")
                return

    def _mix(self, cluster: ChaosCluster) -> Mix:
        options = self.options
        return Mix(options.seed, cluster.names, options.only, options.journal)

    async def _round(self, cluster: ChaosCluster, load: Load, round_: Round) -> None:
        await asyncio.wait_for(load.tokens_more(round_.after_tokens), SETTLE_S)
        if round_.harmless:
            # Those that the fault before has moved.
            await asyncio.wait_for(load.ended(list(load.running.values())), SETTLE_S)
        tally, loop = load.tally, asyncio.get_running_loop()
        under_way = list(load.running.values())
        before = (tally.rerouted, tally.reroutes, len(tally.gaps_s), len(tally.troubles))
        struck_s = loop.time()
        strikes = []
        for fault in round_.faults:
            alone = len(round_.faults) == 1
            strikes.append(asyncio.create_task(strike(cluster, fault, self._marks, alone=alone)))
            await asyncio.sleep(round_.apart_s)
        await asyncio.gather(*strikes)
        mended_s = loop.time()
        try:
            async with asyncio.timeout(SETTLE_S):
                await load.ended(under_way)
        except TimeoutError:
            raise LocalError(f"requests hang: {load.describe_running()}") from None
        settled_s = loop.time()
        healed_s = await cluster.whole(WHOLE_S) + settled_s - mended_s
        held = await held_now(cluster)
        for name, child in cluster.children.items():
            self._watch.add(name, child.lives, child.holds(), str(held.get(name, "")))
        gaps_s = tally.gaps_s[before[2] :]
        report = RoundReport(
            number=round_.number,
            what=str(round_),
            struck_s=round(struck_s - loop.time() + time.monotonic() - self._started_s, 1),
            healed_s=round(healed_s, 2),
            settled_s=round(settled_s - struck_s, 2),
            under_way=len(under_way),
            rerouted=tally.rerouted - before[0],
            reroutes=tally.reroutes - before[1],
            longest_gap_s=round(max(gaps_s, default=0.0), 2),
        )
        self._rounds.append(report)
        if round_.harmless and report.rerouted:
            self._marks.broken.append(
                f"round {round_.number} ({round_}) moved {report.rerouted} requests"
            )
        self._say(self._line(report, load))
        for trouble in tally.troubles[before[3] :]:
            self._say(f"  {trouble.kind}: {trouble.stream}, {trouble.text}")

    def _line(self, r: RoundReport, load: Load) -> str:
        tally = load.tally
        ended = tally.finished + tally.cancelled
        return (
            f"{r.number}: {r.what}: {r.rerouted} of {r.under_way} requests moved {r.reroutes} "
            f"times, longest pause {r.longest_gap_s:.1f} s, whole again after {r.healed_s:.1f} s; "
            f"{ended} requests and {tally.tokens} tokens so far, {len(tally.troubles)} troubles"
        )

    async def _finish(self, cluster: ChaosCluster, load: Load) -> None:
        """Lets the load run out, and holds the cluster to its books."""
        broken = self._marks.broken
        try:
            await asyncio.wait_for(load.stop(), DEADLINE_S + 10)
        except TimeoutError:
            broken.append(f"requests hang: {load.describe_running()}")
        try:
            await cluster.idle(IDLE_S)
        except LocalError as e:
            broken.append(f"something is still held: {e}")
        broken += [f"{t.kind}: stream {t.stream}, {t.text}" for t in load.tally.troubles]

    def _report(
        self, plan: Plan, catalogue: list[Known], load: Load, before: float, after: float | None
    ) -> ChaosReport:
        tally = load.tally
        return ChaosReport(
            seed=self.options.seed,
            streams=self.options.streams,
            rounds=tuple(self._rounds),
            seconds=round(time.monotonic() - self._started_s, 1),
            nodes=dict(plan.slices),
            catalogue=len(catalogue),
            finished=tally.finished,
            cancelled=tally.cancelled,
            tokens=tally.tokens,
            rerouted=tally.rerouted,
            reroutes=tally.reroutes,
            most_reroutes=tally.most_reroutes,
            gaps_s=tuple(tally.gaps_s),
            forgotten_s=tuple(self._marks.forgotten_s),
            undisturbed_tokens_per_s=round(before, 1),
            afterwards_tokens_per_s=None if after is None else round(after, 1),
            held={
                name: {
                    "rss_mib": [s.rss_bytes >> 20 for s in samples],
                    "descriptors": [s.descriptors for s in samples],
                }
                for name, samples in self._watch.longest().items()
            },
            violations=tuple(self._marks.broken),
        )

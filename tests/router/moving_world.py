"""A world whose nodes load what they are told, free what they are told, and do not run the rest."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from helix_mq.errors import HelixError
from helix_mq.ids import NodeId
from helix_mq.layers import LayerRange
from helix_mq.messages.control import Assign, Ready, Register, Retain, StepTimes
from router import events as ev
from router.cluster_core import ClusterCore, ClusterSettings
from router.core import Core, CoreSettings
from router.kv_books import KvBooks
from router.moves import MoveSettings
from router.placing import Placer, ProportionalPlacer
from router.replanner import ReplanSettings
from router.searches import Found
from tests.router.world import CONFIG, DIGEST, PAGE_TOKENS, PAGES, World, register

TIMES = StepTimes(((1.0, 1e-3), (256.0, 1e-2)), ((1.0, 1e-3), (64.0, 2e-3)))
MEMORY = 1 << 20
MANUAL = ReplanSettings(automatic=False)


class Moving(World):
    """`loading`: slices that nodes have been told to load and have not. `loaded`: by node and
    epoch, what they run."""

    def __init__(
        self,
        now: Mapping[str, LayerRange],
        *,
        held_bytes: int = MEMORY // 4,
        replan: ReplanSettings = MANUAL,
        placer: Placer | None = None,
    ) -> None:
        super().__init__(slices=now)
        if placer is None:
            placer = ProportionalPlacer(CONFIG, len(now))
            placer.adopt({NodeId(n): r for n, r in now.items()})
        settings = ClusterSettings(moves=MoveSettings(replan=replan))
        cluster = ClusterCore(CONFIG, DIGEST, settings, placer, self.clock, self.core.cluster.epoch)
        self.core = Core(CONFIG, CoreSettings(), cluster, KvBooks(0.9), self.clock, self._new_text)
        self.held_bytes = held_bytes
        self.searches: list[ev.PlanWanted] = []
        self.retained: dict[str, tuple[int, ...]] = {}
        self.loading: list[tuple[str, Assign]] = []
        self.notes: list[str] = []
        self.loaded: dict[tuple[str, int], LayerRange] = {}

    def join_measured(self, node: str, *, load: bool = True) -> None:
        self.join_as(node, replace(register(node, 0, memory=MEMORY), times=TIMES), load=load)

    def join_as(self, node: str, said: Register, *, load: bool = True) -> None:
        incarnation = next(self._incarnations)
        if node in self.members:
            self._forget(node, self.members[node])
        self.members[node] = incarnation
        self.handle(ev.NodeRegistered(replace(said, incarnation=incarnation)))
        if load:
            self.load_all()

    def _book(self, effect: ev.Effect) -> None:
        super()._book(effect)
        match effect:
            case ev.PlanWanted():
                self.searches.append(effect)
            case ev.ToNode(node, _, Assign() as order):
                self.loading.append((node, order))
            case ev.ToNode(node, _, Retain(epochs)):
                self.retained[node] = epochs
                for key in [k for k in self.loaded if k[0] == node and k[1] not in epochs]:
                    del self.loaded[key]
                self.loading = [(n, o) for n, o in self.loading if n != node or o.epoch in epochs]
            case ev.Note():
                self.notes.append(effect.text)
            case _:
                pass

    def _served(self, node: str, epoch: int) -> LayerRange | None:
        return self.loaded.get((node, epoch))

    def _forget(self, node: str, incarnation: int) -> None:
        if self.members.get(node) == incarnation:
            self.loaded = {k: v for k, v in self.loaded.items() if k[0] != node}
            self.loading = [(n, o) for n, o in self.loading if n != node]
        super()._forget(node, incarnation)

    def load_all(self) -> None:
        while self.loading:
            self.load(0)

    def load(self, index: int) -> None:
        node, order = self.loading.pop(index)
        self.loaded[node, order.epoch] = LayerRange(order.first, order.end)
        said = Ready(
            order.epoch,
            order.first,
            order.end,
            PAGES,
            PAGE_TOKENS,
            0.1,
            1000.0,
            "",
            self.held_bytes,
        )
        self.handle(ev.NodeReady(NodeId(node), self.members[node], said))

    def found(self, target: Mapping[str, LayerRange], then: float = 200.0) -> list[ev.Effect]:
        slices = {NodeId(n): r for n, r in target.items()}
        answer = Found(slices, then, 100.0, "test")
        return self.handle(ev.PlanFound(self.searches[-1].number, answer))

    def replan(self, target: Mapping[str, LayerRange]) -> None:
        self.handle(ev.ReplanWanted())
        assert self.searches
        self.found(target)
        self.handle(ev.Tick())

    def place(self, target: Mapping[str, LayerRange]) -> HelixError | None:
        """Makes a placement, or gives the refusal."""
        try:
            self.handle(ev.PlacementWanted({NodeId(n): r for n, r in target.items()}))
        except HelixError as e:
            self.check()
            return e
        return None

    @property
    def placed(self) -> dict[str, LayerRange]:
        return {m.name: m.layers for m in self.core.cluster.membership if m.layers is not None}

"""What caps the live flow, in words: "the two T4s holding layers 33-37 cap you at 1,290 tokens/s".

The min cut of the flow that requests really follow, so the sentence and the flow never disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from helix_mq.ids import ROUTER, NodeId
from helix_mq.layers import LayerRange

MAX_NAMES = 4
MAX_PARTS = 4
"""Of a sentence: what is beyond is counted."""
SLOW = 1.2
"""A node this many times slower than it measured is said to be slow."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, slots=True)
class Cut:
    """What caps a flow, its min cut nearest to the source: `engines` compute as fast as they can,
    through the network cards `nics_in` and `nics_out` no more activations pass, nor over `links`
    (ROUTER may be an end)."""

    engines: tuple[NodeId, ...] = ()
    nics_in: tuple[NodeId, ...] = ()
    nics_out: tuple[NodeId, ...] = ()
    links: tuple[tuple[NodeId, NodeId], ...] = ()


@dataclass(frozen=True, slots=True)
class CutNode:
    """A node as the sentence names it; `kind` as in `T4` or `CPU node`."""

    kind: str
    layers: LayerRange
    slowdown: float = 1.0


def bottleneck_text(tokens_per_s: float, cut: Cut, nodes: Mapping[NodeId, CutNode]) -> str:
    """One sentence without its full stop; empty where there is no flow. `nodes` knows the cut's."""
    if tokens_per_s <= 0:
        return ""
    parts = [
        *_engines(cut.engines, nodes),
        *_cards("inbound", cut.nics_in),
        *_cards("outbound", cut.nics_out),
        *_links(cut.links),
    ]
    if not parts:
        return ""
    # Whatever stands there, more than one thing is plural.
    things = sum(map(len, (cut.engines, cut.nics_in, cut.nics_out, cut.links)))
    verb = "caps" if things == 1 else "cap"
    if len(parts) > MAX_PARTS:
        parts = [*parts[: MAX_PARTS - 1], f"{len(parts) - MAX_PARTS + 1} more groups"]
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    together = " together" if len(parts) > 1 else ""
    return f"{text}{together} {verb} you at {rounded(tokens_per_s)} tokens/s"


def rounded(tokens_per_s: float) -> str:
    """`1,290`: three digits that mean something; `0.52` below ten."""
    if tokens_per_s < 10:
        return f"{tokens_per_s:.2g}"
    digits = len(str(int(tokens_per_s)))
    return f"{round(tokens_per_s, min(0, 3 - digits)):,.0f}"


def _engines(names: Sequence[NodeId], nodes: Mapping[NodeId, CutNode]) -> list[str]:
    groups: dict[tuple[LayerRange, str], list[NodeId]] = {}
    for name in names:
        node = nodes[name]
        groups.setdefault((node.layers, node.kind), []).append(name)
    parts = []
    for (layers, kind), members in sorted(groups.items()):
        many = len(members) > 1
        count = f"{_count(len(members))} {kind}s" if many else kind
        text = f"the {count} holding {layers} ({_names(members)})"
        worst = max(nodes[name].slowdown for name in members)
        if worst >= SLOW:
            text += f", {worst:.1f}x slower than measured,"
        parts.append(text)
    return parts


def _cards(way: str, names: Sequence[NodeId]) -> list[str]:
    many = "s" if len(names) > 1 else ""
    return [f"the {way} network card{many} of {_names(names)}"] if names else []


def _links(links: Sequence[tuple[NodeId, NodeId]]) -> list[str]:
    if not links:
        return []
    named = ", ".join(f"{_end(a)} > {_end(b)}" for a, b in links[:MAX_NAMES])
    more = f" and {len(links) - MAX_NAMES} more" if len(links) > MAX_NAMES else ""
    count = "link" if len(links) == 1 else f"{_count(len(links))} links"
    return [f"the {count} {named}{more}"]


def _end(node: NodeId) -> str:
    return "router" if node == ROUTER else node


def _count(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def _names(names: Sequence[NodeId]) -> str:
    shown = sorted(names)
    if len(shown) > MAX_NAMES:
        return f"{', '.join(shown[:MAX_NAMES])} and {len(shown) - MAX_NAMES} more"
    return ", ".join(shown)

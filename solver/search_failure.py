"""Why a model cannot be placed on a cluster, as exactly as can be told, in words."""

from __future__ import annotations

from collections.abc import Sequence

from helix_mq.layers import describe_ranges
from solver.heuristics import describe_room, petals
from solver.search_index import ProblemIndex
from solver.search_types import TooLittleRoom


def why_not(index: ProblemIndex, seed: int, notes: Sequence[str]) -> str:
    """The reason that no placement passes any flow, and what the search noted on its way."""
    nodes, layers = index.nodes, index.problem.num_layers
    room = int(index.max_layers.sum())
    if room < layers:
        reason = f"{layers - room} of {layers} layers find no place: " + describe_room(
            nodes, layers
        )
    else:
        reason = _uncovered(index, seed) or (
            "no placement found that leads from the router through all layers and back: "
            + describe_room(nodes, layers)
            + ", but the links between them do not join up"
        )
    # Petals is also among the notes.
    return "; ".join([reason, *(note for note in notes if note not in reason)])


def _uncovered(index: ProblemIndex, seed: int) -> str:
    """In words, what the fullest placement of a heuristic leaves out, if it leaves out any."""
    try:
        missing = petals(index.problem, seed).missing()
    except TooLittleRoom as error:
        return f"{error.reason}: {describe_room(index.nodes, index.problem.num_layers)}"
    return f"{describe_ranges(missing)} find no place" if missing else ""

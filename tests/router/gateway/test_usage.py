"""Usage as OpenAI counts it: each prompt once, and of what was guessed what came out right."""

from __future__ import annotations

import msgspec

from router.gateway.dialects import Item, Tally
from router.service import Finished


def end(output: int, cached: int, drafted: int, accepted: int) -> Finished:
    return Finished(
        "stop", 10, output, 0.0, 0.1, 0.2, 0,
        cached_tokens=cached, drafted_tokens=drafted, accepted_tokens=accepted,
    )  # fmt: skip


def counted(*ends: Finished) -> dict[str, object]:
    tally = Tally(2)
    for index, one in enumerate(ends):
        tally.add(Item(index, one))
    found = msgspec.json.decode(msgspec.json.encode(tally.usage()))
    assert isinstance(found, dict)
    return found


def test_drafts_are_counted_over_all_choices_and_prompts_once() -> None:
    assert counted(end(5, 8, 7, 4), end(6, 8, 3, 0)) == {
        "prompt_tokens": 10,
        "completion_tokens": 11,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {
            "accepted_prediction_tokens": 4,
            "rejected_prediction_tokens": 6,
        },
    }


def test_without_any_there_is_nothing_about_them() -> None:
    plain = {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}
    assert counted(end(4, 0, 0, 0), end(5, 0, 0, 0)) == plain

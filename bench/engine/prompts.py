"""Prompts of an exact number of tokens: one English text, from another place for each row."""

from __future__ import annotations

from pathlib import Path

from bench.engine.types import Case
from helix_mq.models.tokenizer import Tokenizer

_TEXT = (
    "The harbour lay quiet under a grey sky. Two fishing boats had come in before dawn, and their "
    "crews were mending nets on the stone quay while gulls walked between the crates. An old man "
    "with a notebook asked each captain what he had caught, where, and how deep the water was. He "
    "had done so every morning for thirty years; nobody remembered who had first asked him to. In "
    "the evening he copied the figures into a ledger: the day, the wind, the moon, the price of "
    "cod. When the ministry at last sent somebody to count the fish, she found that the whole "
    "history of the bay had been written down already, in a careful, narrow hand. She sat in his "
    "kitchen for a week and read. Why did the herring leave in the cold spring, and come back? "
)


def prompts_of(folder: Path, case: Case) -> list[list[int]]:
    """Rows of one length, all different."""
    ids = Tokenizer.from_folder(folder).encode(_TEXT)
    step = 7
    need = case.context + step * case.batch
    ids = ids * -(-need // len(ids))
    return [ids[step * row : step * row + case.context] for row in range(case.batch)]

"""The bound on a token's characters: never passed by a real tokenizer, and absent where there is
none; tokenising with the lock released gives the ids that tokenising with it gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helix_mq.errors import ContextExceeded
from helix_mq.models.literal_text import encoding
from helix_mq.models.text_bounds import chars_per_token
from helix_mq.models.tokenizer import Tokenizer

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Spaces, learned words, special tokens, letters with marks that compose, and anything at all.
PIECES = st.one_of(
    st.sampled_from(
        [" ", "    ", " dog", "the", "<|begin|>", "<think>", "\u03b1\u0313\u0301\u0345"]
    ),
    st.text(max_size=6),
)
TEXT = st.lists(PIECES, max_size=40).map("".join)
NFC: dict[str, Any] = {"type": "NFC"}


@FUZZ
@given(text=TEXT)
def test_no_text_has_more_characters_than_its_tokens_can_hold(
    tokenizer_json: str, text: str
) -> None:
    data = json.loads(tokenizer_json)
    for normalizer in (data["normalizer"], NFC) if data["normalizer"] is None else (None,):
        if normalizer is not None:
            data["normalizer"] = normalizer
        most = chars_per_token(data)
        assert most is not None
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
        assert len(text) <= most * len(tokenizer.encode(text, add_special_tokens=False).ids)


@FUZZ
@given(text=TEXT)
def test_the_lock_released_changes_no_id(tokenizer_json: str, text: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    for special in (True, False):
        expected = tokenizer.encode(text, add_special_tokens=special).ids
        assert encoding(tokenizer, text, add_special_tokens=special).ids == expected


def test_the_bound_is_the_longest_token(byte_level_json: str) -> None:
    data = json.loads(byte_level_json)
    longest = max(map(len, [*data["model"]["vocab"], "<|start_role|>"]))
    assert chars_per_token(data) == longest
    assert chars_per_token({**data, "normalizer": NFC}) == 4 * longest


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "  "}, "content": " "}},
        {"normalizer": {"type": "Sequence", "normalizers": [NFC, {"type": "StripAccents"}]}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed"}},
        {"pre_tokenizer": None},
        {"added_tokens": [{"content": "<|end|>", "rstrip": True}]},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}}},
    ],
    ids=str,
)
def test_there_is_none_where_text_can_get_lost(
    byte_level_json: str, change: dict[str, Any]
) -> None:
    assert chars_per_token({**json.loads(byte_level_json), **change}) is None


def test_sentencepiece_needs_its_bytes(sentencepiece_json: str) -> None:
    data = json.loads(sentencepiece_json)
    assert chars_per_token(data) is not None
    data["model"]["byte_fallback"] = False
    assert chars_per_token(data) is None


def test_too_many_tokens_are_refused_whether_the_bound_tells_or_not(byte_level_json: str) -> None:
    tokenizer = Tokenizer(byte_level_json, {}, None)
    assert tokenizer.encode("a b c", most_tokens=5) == tokenizer.encode("a b c")
    with pytest.raises(ContextExceeded, match=r"prompt: 7 tokens are more than the 6 that"):
        tokenizer.encode("\x00" * 7, most_tokens=6)
    with pytest.raises(ContextExceeded, match="1000 characters are more than fit into 6 tokens"):
        tokenizer.encode("x" * 1000, most_tokens=6)

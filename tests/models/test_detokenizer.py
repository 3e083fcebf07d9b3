"""Incremental text against the whole text, for every kind of tokenizer and any ids."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helix_mq.models.detokenizer import (
    MAX_HELD_TOKENS,
    ByteDetokenizer,
    Detokenizer,
    PrefixDetokenizer,
)
from helix_mq.models.tokenizer import Tokenizer

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer(tokenizer_json, {}, None)


def in_pieces(detokenizer: Detokenizer, ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def test_all_texts_come_back_whole_and_in_whole_characters(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    assert isinstance(tokenizer.detokenizer(), ByteDetokenizer)
    for text in texts:
        ids = tokenizer.encode(text)
        pieces = in_pieces(tokenizer.detokenizer(), ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)


@FUZZ
@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_any_ids_of_a_byte_level_vocabulary(byte_level_json: str, numbers: list[int]) -> None:
    """Broken UTF-8 and special tokens included."""
    tokenizer = Tokenizer(byte_level_json, {}, None)
    ids = [n % (tokenizer.vocab_size + 3) for n in numbers]
    known = [i for i in ids if i < tokenizer.vocab_size]
    assert "".join(in_pieces(tokenizer.detokenizer(), ids)) == tokenizer.decode(known)


@FUZZ
@given(st.text(max_size=40), st.integers(0, 2**32))
def test_any_text_of_a_sentencepiece_vocabulary_with_special_tokens_between(
    sentencepiece_json: str, text: str, seed: int
) -> None:
    tokenizer = Tokenizer(sentencepiece_json, {}, None)
    chance = random.Random(seed)
    ids = []
    for i in tokenizer.encode(text):
        if chance.random() < 0.2:
            ids.append(chance.choice(sorted(tokenizer.special_ids)))
        ids.append(i)
    assert "".join(in_pieces(tokenizer.detokenizer(), ids)) == tokenizer.decode(ids)


def test_every_single_token_as_the_library_decodes_it(tokenizer_json: str) -> None:
    tokenizer = Tokenizer(tokenizer_json, {}, None)
    plain = tokenizers.Tokenizer.from_str(tokenizer_json)
    for i in range(tokenizer.vocab_size):
        expected = plain.decode([i], skip_special_tokens=True)
        assert "".join(in_pieces(tokenizer.detokenizer(), [i])) == expected


def test_bytes_of_tokens_make_up_the_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        joined = b"".join(tokenizer.token_bytes(i) for i in ids).decode()
        # SentencePiece tokenizers write the space they put before the first word.
        assert joined in (text, " " + text)


def test_token_text_keeps_the_space_before_a_word(sentencepiece_json: str) -> None:
    tokenizer = Tokenizer(sentencepiece_json, {}, None)
    ids = tokenizer.encode("the dog", add_special_tokens=False)
    assert "".join(tokenizer.token_text(i) for i in ids) == " the dog"
    (end,) = (i for i in tokenizer.special_ids if tokenizer.token_text(i) == "</s>")
    assert tokenizer.token_bytes(end) == b"</s>"


def test_a_text_that_continues_another_keeps_its_first_space(sentencepiece_json: str) -> None:
    tokenizer = Tokenizer(sentencepiece_json, {}, None)
    start = tokenizer.encode("The quick")
    whole = tokenizer.encode("The quick dog")
    assert whole[: len(start)] == start
    rest = whole[len(start) :]
    assert "".join(in_pieces(tokenizer.detokenizer(after=start), rest)) == " dog"
    assert "".join(in_pieces(tokenizer.detokenizer(), rest)) == "dog"
    # Special tokens alone are no text before it.
    special = sorted(tokenizer.special_ids)[:2]
    assert "".join(in_pieces(tokenizer.detokenizer(after=special), rest)) == "dog"


# The method for decoders that are not understood: the same promises, on the same tokenizers.


@FUZZ
@given(st.text(max_size=40))
def test_the_prefix_method_gives_any_text_whole(tokenizer_json: str, text: str) -> None:
    tokenizer = Tokenizer(tokenizer_json, {}, None)
    ids = tokenizer.encode(text)
    pieces = in_pieces(PrefixDetokenizer(tokenizer.decode), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_the_prefix_method_keeps_spaces_after_special_tokens(sentencepiece_json: str) -> None:
    tokenizer = Tokenizer(sentencepiece_json, {}, None)
    end = sorted(tokenizer.special_ids)[-1]
    ids = [i for token in tokenizer.encode("the lazy dog") for i in (token, end)]
    assert "".join(in_pieces(PrefixDetokenizer(tokenizer.decode), ids)) == "the lazy dog"
    after = tokenizer.encode("The quick")
    (dog,) = tokenizer.encode("dog")[-1:]
    assert "".join(in_pieces(PrefixDetokenizer(tokenizer.decode, after), [dog])).endswith("og")


def test_the_prefix_method_s_window_stays_small() -> None:
    seen: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        seen.append(len(ids))
        return ""

    detokenizer = PrefixDetokenizer(decode)
    for _ in range(1000):
        detokenizer.push(7)
    assert max(seen) <= 3 * MAX_HELD_TOKENS


def test_a_decoder_of_another_kind_falls_back_to_the_prefix_method(byte_level_json: str) -> None:
    odd = tokenizers.Tokenizer.from_str(byte_level_json)
    odd.decoder = tokenizers.decoders.Metaspace()
    tokenizer = Tokenizer(odd.to_str(), {}, None)
    assert isinstance(tokenizer.detokenizer(), PrefixDetokenizer)

"""Tokenizers out of GGUF files: the ids of the tokenizer that went in, and of transformers."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from transformers.tokenization_utils_base import generate_merges

from helix_mq.errors import ModelFormatError
from helix_mq.models.gguf_import import import_gguf
from helix_mq.models.gguf_tokenizer import build_tokenizer, merges_from_scores
from helix_mq.models.gguf_vocabulary import SPLITTINGS, GgufVocabulary
from helix_mq.models.resolve import find_demo_gguf, resolve_model
from helix_mq.models.tokenizer import Tokenizer

Write = Callable[..., Any]
Read = Callable[[str], tuple[list[str], list[str]]]

NORMAL, CONTROL, USER = 1, 3, 4


@pytest.fixture
def import_tokenizer(
    tmp_path: Path, write_gguf: Write, model_of_tokenizer: Read, special_spellings: list[str]
) -> Callable[..., Tokenizer]:
    """tokenizer.json text -> the tokenizer that comes back from a GGUF file with its vocabulary."""

    def through_gguf(tokenizer_json: str, kind: str, **options: Any) -> Tokenizer:
        tokens, merges = model_of_tokenizer(tokenizer_json)
        special = {*special_spellings, "<unk>", "<s>", "</s>"}
        types = [CONTROL if t in special else USER if t == "<think>" else NORMAL for t in tokens]
        if kind == "gpt2":
            ids = {
                "tokenizer.ggml.bos_token_id": tokens.index("<|begin|>"),
                "tokenizer.ggml.eos_token_id": tokens.index("<|end|>"),
                "tokenizer.ggml.unknown_token_id": None,
            }
            options = {
                "merges": merges,
                **options,
                "changes": {**ids, **options.get("changes", {})},
            }
        write_gguf(tmp_path / "t.gguf", tokens=tokens, types=types, tokenizer=kind, **options)
        return Tokenizer.from_folder(import_gguf(tmp_path / "t.gguf", tmp_path / "cache"))

    return through_gguf


def by_transformers(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, gguf_file="t.gguf")


MARKED = ["a<|end|>b", "<|begin|><|start_role|>user<|end_role|>\n hi", "<think>x</think>", " <s> "]


def test_a_byte_level_tokenizer_comes_back(
    import_tokenizer: Callable[..., Tokenizer], byte_level_json: str, texts: list[str]
) -> None:
    imported = import_tokenizer(byte_level_json, "gpt2", pre="gpt-2")
    original = Tokenizer(byte_level_json, {}, None)
    for text in texts + MARKED:
        ids = original.encode(text)
        assert imported.encode(text) == ids
        assert imported.decode(ids) == original.decode(ids)
    assert imported.special_ids == original.special_ids
    assert imported.vocab_size == original.vocab_size


def test_a_sentencepiece_tokenizer_comes_back_from_its_scores(
    import_tokenizer: Callable[..., Tokenizer], sentencepiece_json: str, texts: list[str]
) -> None:
    imported = import_tokenizer(sentencepiece_json, "llama")
    original = Tokenizer(sentencepiece_json, {}, None)
    for text in texts + MARKED:
        ids = original.encode(text)
        assert imported.encode(text, add_special_tokens=False) == ids
        # Llama's vocabularies begin texts with <s> unless the file says otherwise.
        assert imported.encode(text) == [1, *ids]
        assert imported.decode(ids) == original.decode(ids)


@pytest.mark.parametrize("pre", sorted(SPLITTINGS))
def test_each_split_is_that_of_transformers(
    tmp_path: Path,
    import_tokenizer: Callable[..., Tokenizer],
    byte_level_json: str,
    texts: list[str],
    pre: str,
) -> None:
    imported = import_tokenizer(byte_level_json, "gpt2", pre=pre)
    theirs = by_transformers(tmp_path)
    for text in texts + MARKED:
        if SPLITTINGS[pre].nfc:
            text = unicodedata.normalize("NFC", text)
        if SPLITTINGS[pre].digits_apart:
            # transformers splits like GPT-2 here, and so keeps spaces before digits together.
            text = "".join(c for c in text if not c.isnumeric())
        assert imported.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        ), text


def test_sentencepiece_merges_are_those_of_transformers(
    tmp_path: Path,
    import_tokenizer: Callable[..., Tokenizer],
    model_of_tokenizer: Read,
    sentencepiece_json: str,
    texts: list[str],
) -> None:
    tokens, _ = model_of_tokenizer(sentencepiece_json)
    scores = [-float(i // 3) for i in range(len(tokens))]
    expected = generate_merges(
        {t: i for i, t in enumerate(tokens)}, dict(zip(tokens, scores, strict=True))
    )
    assert merges_from_scores(tokens, scores) == expected
    imported = import_tokenizer(sentencepiece_json, "llama")
    theirs = by_transformers(tmp_path)
    for text in texts:
        # At the start of a text transformers' Metaspace takes a space for the one it would add.
        text = text.lstrip(" ")
        assert imported.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        ), text


def test_digits_are_apart_from_the_spaces_before_them(
    import_tokenizer: Callable[..., Tokenizer], byte_level_json: str
) -> None:
    """As SmolLM's own tokenizer.json and llama.cpp have it."""
    imported = import_tokenizer(byte_level_json, "gpt2", pre="smollm")
    words = [imported.token_text(i) for i in imported.encode("In  1969 600")]
    assert words == ["In", "  ", "1", "9", "6", "9", " ", "6", "0", "0"]


def test_whole_words_need_no_merges_where_the_family_says_so(
    import_tokenizer: Callable[..., Tokenizer], byte_level_json: str
) -> None:
    tokens = tokenizers.Tokenizer.from_str(byte_level_json)
    data = tokens.to_str().replace('"Ġquick"', '"zebra"').replace('["Ġqu","ick"],', "")
    apart = import_tokenizer(data, "gpt2", pre="qwen2").encode("zebra")
    whole = import_tokenizer(data, "gpt2", pre="llama-bpe").encode("zebra")
    assert len(apart) > 1
    assert len(whole) == 2  # the beginning of the sequence and the word


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ({"pre": "llama-bpe"}, True),
        ({"pre": "qwen2"}, False),
        ({"pre": "qwen2", "changes": {"tokenizer.ggml.add_bos_token": True}}, True),
        ({"pre": "llama-bpe", "changes": {"tokenizer.ggml.add_bos_token": False}}, False),
        ({"pre": "llama-bpe", "changes": {"tokenizer.ggml.bos_token_id": None}}, False),
    ],
)
def test_who_begins_with_the_beginning_token(
    import_tokenizer: Callable[..., Tokenizer],
    byte_level_json: str,
    options: dict[str, Any],
    begins: bool,
) -> None:
    imported = import_tokenizer(byte_level_json, "gpt2", **options)
    texts = [imported.token_text(i) for i in imported.encode("hello")]
    assert (texts[0] == "<|begin|>") is begins
    assert imported.decode(imported.encode("hello", add_special_tokens=False)) == "hello"


def test_a_space_before_the_first_word_only_where_the_file_wants_it(
    import_tokenizer: Callable[..., Tokenizer], sentencepiece_json: str
) -> None:
    changes = {"tokenizer.ggml.add_space_prefix": False}
    imported = import_tokenizer(sentencepiece_json, "llama", changes=changes)
    for text in ("the dog", " the dog"):
        ids = imported.encode(text)
        assert "".join(imported.token_text(i) for i in ids[1:]) == text
        assert imported.decode(ids) == text


def vocabulary(**changes: Any) -> GgufVocabulary:
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["a", "b", "ab"],
        "types": [],
        "scores": [],
        "merges": ["a b"],
        "bos_id": None,
        "eos_id": None,
        "unknown_id": None,
        "add_bos": None,
        "add_space_prefix": None,
    }
    return GgufVocabulary(**{**values, **changes})


def test_a_vocabulary_without_types_has_no_special_tokens() -> None:
    assert build_tokenizer(vocabulary()).encode("abab").ids == [2, 2]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"tokens": []}, "no tokens"),
        ({"model": "t5"}, "t5"),
        ({"pre": "viking"}, "viking"),
        ({"merges": ["ab"]}, "two tokens"),
        ({"merges": ["a c"]}, "cannot be built"),
        ({"model": "llama", "merges": []}, "score"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelFormatError, match=word):
        build_tokenizer(vocabulary(**changes))


# The demonstration model's own.


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    try:
        return Tokenizer.from_folder(resolve_model(find_demo_gguf()))
    except ModelFormatError as error:
        pytest.skip(str(error))


@pytest.mark.model
def test_the_demonstration_model_s_ids_are_transformers_own(
    demo: Tokenizer, texts: list[str]
) -> None:
    gguf_file = find_demo_gguf()
    theirs: Any = transformers.AutoTokenizer.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name
    )
    files = sorted(Path(__file__).parent.glob("*.py"))
    for text in [*texts, *MARKED, *(file.read_text(encoding="utf-8") for file in files)]:
        # See test_each_split_is_that_of_transformers.
        text = "".join(c for c in text if not c.isnumeric())
        assert demo.encode(text) == theirs.encode(text)
    messages = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Yes?"}]
    assert demo.apply_chat_template(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.model
def test_every_token_of_the_demonstration_model_as_the_library_decodes_it(demo: Tokenizer) -> None:
    for token in range(demo.vocab_size):
        detokenizer = demo.detokenizer()
        assert detokenizer.push(token) + detokenizer.flush() == demo.decode([token])

"""The tokenizer's files in a Hugging Face folder, read with bounds and checked for their shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helix_mq.errors import ModelFormatError
from helix_mq.models.fields import read_json_object
from helix_mq.models.text_bounds import chars_per_token

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
"""Llama 3's is 9 MB, Qwen 2.5's 7 MB."""
MAX_CONFIG_BYTES = 8 * 1024 * 1024
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """`special`: `bos_token` and the like, by the names that templates use."""

    tokenizer_json: str
    special: Mapping[str, str]
    chat_template: str | None


@dataclass(frozen=True, slots=True)
class Sections:
    """What the library keeps to itself of a tokenizer.json that it has accepted.

    unknown_token: what stands for text without a token, or empty. prefixes_first_word: only the
    first word of a whole text gets a space before it (transformers' SentencePiece scheme).
    chars_per_token: the most characters of a text in one token, None where that has no bound.
    """

    decoder: Mapping[str, Any]
    unknown_token: str
    prefixes_first_word: bool
    chars_per_token: int | None

    @classmethod
    def of(cls, tokenizer_json: str) -> Sections:
        data = json.loads(tokenizer_json)
        decoder, model, first = (data.get(k) for k in ("decoder", "model", "pre_tokenizer"))
        unknown = model.get("unk_token") if isinstance(model, dict) else None
        return cls(
            decoder=decoder if isinstance(decoder, dict) else {},
            unknown_token=unknown if isinstance(unknown, str) else "",
            prefixes_first_word=isinstance(first, dict)
            and first.get("type") == "Metaspace"
            and first.get("prepend_scheme") == "first",
            chars_per_token=chars_per_token(data),
        )


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Raises ModelFormatError for a file that is missing, too large, or not what it should be."""
    tokenizer_json = _read_text(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
    config_path = folder / "tokenizer_config.json"
    config: dict[str, Any] = {}
    if config_path.is_file():
        config = read_json_object(config_path, max_bytes=MAX_CONFIG_BYTES)
    template_path = folder / "chat_template.jinja"
    if template_path.is_file():
        template: str | None = _read_text(template_path, MAX_CONFIG_BYTES)
    else:
        template = _template_of(config, config_path)
    return TokenizerFiles(tokenizer_json, _special_of(config), template)


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as e:
        raise ModelFormatError(f"cannot read {path}: {e.strerror or e}") from None
    if len(data) > max_bytes:
        raise ModelFormatError(f"{path} is larger than {max_bytes} bytes; that is no {path.name}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ModelFormatError(f"{path} is not UTF-8: {e.reason}") from None


def _special_of(config: Mapping[str, Any]) -> dict[str, str]:
    special = {}
    for name in _SPECIAL:
        value = config.get(f"{name}_token")
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            special[f"{name}_token"] = value
    return special


def _template_of(config: Mapping[str, Any], path: Path) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several named templates: the default one is for plain chat.
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ModelFormatError(f"{path}: chat_template must be a text", param="chat_template")
    return template

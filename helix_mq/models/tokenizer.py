"""Text to token ids and back, by a model folder's own tokenizer and chat template.

Stands on the `tokenizers` library; thread-safe. Two instances are kept: one that reads special
tokens in text (prompts, templates), one that does not (what users wrote inside chat messages).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from helix_mq.errors import InvalidRequest, ModelFormatError
from helix_mq.models.chat_template import ChatTemplate
from helix_mq.models.detokenizer import Detokenizer

MAX_TEXT_CHARS = 4 * 1024 * 1024
MAX_TOKENIZER_BYTES = 64 * 1024 * 1024


class Tokenizer:
    def __init__(
        self, tokenizer_json: str, special: Mapping[str, str], chat_template: str | None
    ) -> None:
        """`special`: the template's variables (`bos_token`, ...); see `from_folder`."""
        try:
            self._reads_special = tokenizers.Tokenizer.from_str(tokenizer_json)
            self._literal = tokenizers.Tokenizer.from_str(tokenizer_json)
        except Exception as e:
            # The library raises plain Exception for whatever is wrong in the file.
            raise ModelFormatError(f"tokenizer.json cannot be used: {e}") from None
        self._literal.encode_special_tokens = True
        for one in (self._reads_special, self._literal):
            one.no_truncation()
            one.no_padding()
        added = self._reads_special.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        markup = [token.content for token in added.values() if token.special]
        self._template = (
            ChatTemplate(chat_template, special, markup) if chat_template is not None else None
        )

    @classmethod
    def from_folder(cls, folder: Path | str) -> Tokenizer:
        """From tokenizer.json, tokenizer_config.json and, where present, chat_template.jinja."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        try:
            if path.stat().st_size > MAX_TOKENIZER_BYTES:
                raise ModelFormatError(f"{path} is larger than {MAX_TOKENIZER_BYTES} bytes")
            text = path.read_text(encoding="utf-8")
        except OSError as e:
            raise ModelFormatError(f"cannot read {path}: {e.strerror or e}") from None
        except UnicodeDecodeError as e:
            raise ModelFormatError(f"{path} is not UTF-8: {e.reason}") from None
        config = _read_config(folder / "tokenizer_config.json")
        template_file = folder / "chat_template.jinja"
        template = (
            template_file.read_text(encoding="utf-8")
            if template_file.is_file()
            else _template_of(config)
        )
        return cls(text, _special_of(config), template)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def vocab_size(self) -> int:
        return self._reads_special.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens spelled out in it are read as such."""
        _check_length(text)
        return list(
            self._reads_special.encode(_clean(text), add_special_tokens=add_special_tokens).ids
        )

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of chat messages; what users wrote never becomes a special token.

        Raises InvalidRequest when the model has no template or it refuses the messages.
        """
        if self._template is None:
            raise InvalidRequest(
                "this model has no chat template: use completions with a plain prompt",
                param="messages",
            )
        for message in messages:
            for value in message.values():
                _check_length(value)
        cleaned = [{k: _clean(v) for k, v in message.items()} for message in messages]
        ids: list[int] = []
        for piece in self._template.render(cleaned, add_generation_prompt=add_generation_prompt):
            tokenizer = self._literal if piece.literal else self._reads_special
            ids += tokenizer.encode(piece.text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._reads_special.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token: int) -> str:
        """One token's own text, for logprobs; special tokens by their name."""
        return self.decode([token], skip_special_tokens=False)

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder that leaves special tokens out."""
        return Detokenizer(self.decode)


def _check_length(text: str) -> None:
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidRequest(
            f"a text of {len(text)} characters is too long; the limit is {MAX_TEXT_CHARS}",
            param="prompt",
        )


def _clean(text: str) -> str:
    """Lone surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise ModelFormatError(f"{path} cannot be used: {e}") from None
    if not isinstance(config, dict):
        raise ModelFormatError(f"{path} must hold a JSON object")
    return config


def _special_of(config: Mapping[str, Any]) -> dict[str, str]:
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            special[name] = value
    return special


def _template_of(config: Mapping[str, Any]) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several named templates: the default one is for plain chat.
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None

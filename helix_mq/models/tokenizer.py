"""Text to token ids and back, by a model folder's own tokenizer and chat template.

Stands on the `tokenizers` library. Thread-safe: nothing changes after construction but caches.
Texts are bounded, errors are in words, and no user's chat message becomes a special token. Texts of
any length are tokenised with the interpreter's lock released.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from helix_mq.errors import ContextExceeded, InvalidRequest
from helix_mq.models.chat_template import ChatTemplate, Rendered
from helix_mq.models.detokenizer import ByteDetokenizer, Detokenizer, PrefixDetokenizer
from helix_mq.models.library_failures import in_words
from helix_mq.models.literal_text import LiteralEncoder, encoding
from helix_mq.models.token_bytes import TokenBytes
from helix_mq.models.tokenizer_files import Sections, read_tokenizer_files

MAX_TEXT_CHARS = 4 * 1024 * 1024


class Tokenizer:
    def __init__(
        self, tokenizer_json: str, special: Mapping[str, str], chat_template: str | None
    ) -> None:
        """`special`: the template's variables (`bos_token`, ...); see `from_folder`.

        Raises ModelFormatError when the tokenizer or the template cannot be used.
        """
        with in_words("tokenizer.json cannot be used"):
            self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
            sections = Sections.of(tokenizer_json)
            self._literal = LiteralEncoder(tokenizer_json, sections)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        # The one special token that any text may contain: what the vocabulary has no token for.
        self._unknown = self._tokenizer.token_to_id(sections.unknown_token)
        self._chars_per_token = sections.chars_per_token
        self._bytes = TokenBytes.of(self._tokenizer, sections.decoder)
        markup = sorted(token.content for token in added.values() if token.special)
        self._template = (
            ChatTemplate(chat_template, special, markup) if chat_template is not None else None
        )

    @classmethod
    def from_folder(cls, folder: Path | str) -> Tokenizer:
        """From tokenizer.json, tokenizer_config.json and, where present, chat_template.jinja."""
        files = read_tokenizer_files(Path(folder))
        return cls(files.tokenizer_json, files.special, files.chat_template)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def check_fits(self, chars: int, most_tokens: int, param: str) -> None:
        """Raises ContextExceeded for a text that is too long for so many tokens, whatever it says.

        A text that passes may still have more tokens.
        """
        if self._chars_per_token is not None and chars > self._chars_per_token * most_tokens:
            raise ContextExceeded(
                f"{param}: {chars} characters are more than fit into {max(0, most_tokens)} tokens, "
                "which is all that a prompt may have here: shorten it",
                param=param,
            )

    def encode(
        self, text: str, *, add_special_tokens: bool = True, most_tokens: int | None = None
    ) -> list[int]:
        """Token ids of a text; special tokens spelled out in it are read as such.

        Raises ContextExceeded for more than `most_tokens`, before tokenising where that is certain.
        """
        _check_length(len(text), "prompt")
        if most_tokens is not None:
            self.check_fits(len(text), most_tokens, "prompt")
        found = encoding(self._tokenizer, _clean(text), add_special_tokens=add_special_tokens)
        return _ids(found, most_tokens, "prompt")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        most_tokens: int | None = None,
    ) -> list[int]:
        """Token ids of chat messages (`role`, `content`); none of their text becomes a special
        token. Without special tokens' spellings in them the ids are those of transformers.

        Raises InvalidRequest when the model has no template or it refuses the messages, and
        ContextExceeded for more than `most_tokens`.
        """
        if self._template is None:
            raise InvalidRequest(
                "this model has no chat template: use completions with a plain prompt",
                param="messages",
            )
        _check_length(sum(len(v) for m in messages for v in m.values()), "messages")
        cleaned = [{k: _clean(v) for k, v in message.items()} for message in messages]
        prompt = self._template.render(cleaned, add_generation_prompt=add_generation_prompt)
        _check_length(len(prompt.text), "messages")
        if most_tokens is not None:
            # Of the rendered text: templates may leave out some of what messages say.
            self.check_fits(len(prompt.text), most_tokens, "messages")
        if prompt.hidden:
            return self._literal.encode(prompt)
        return self._encode_template(prompt, most_tokens)

    def _encode_template(self, prompt: Rendered, most_tokens: int | None) -> list[int]:
        found = encoding(self._tokenizer, prompt.text, add_special_tokens=False)
        ids = _ids(found, most_tokens, "messages")
        read = sum(i in self.special_ids and i != self._unknown for i in ids)
        if read > self._literal.count_special(prompt.text):
            # Some tokenizers normalise text before they look for special tokens.
            raise InvalidRequest(
                "a message holds text that this model's tokenizer takes for a special token",
                param="messages",
            )
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token: int) -> str:
        """One token's own text, for logprobs: with its leading space, special tokens by name, bytes
        that are no whole character as U+FFFD."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; those of the tokens of a text make up the text's UTF-8."""
        if self._bytes is not None:
            return self._bytes(token)
        return self.decode([token], skip_special_tokens=False).encode("utf-8", "replace")

    def detokenizer(self, *, after: Sequence[int] = ()) -> Detokenizer:
        """A fresh incremental decoder that leaves special tokens out.

        `after`: ids that the text continues, such as a completion's prompt: the space that
        SentencePiece tokenizers take off the start of a text then stays.
        """
        if self._bytes is None:
            return PrefixDetokenizer(self.decode, after)
        at_start = all(i in self.special_ids for i in after)
        return ByteDetokenizer(self._bytes, self.special_ids, at_start=at_start)


def _ids(found: tokenizers.Encoding, most_tokens: int | None, param: str) -> list[int]:
    """The ids, which are made into Python's numbers only if there are not too many."""
    if most_tokens is not None and len(found) > most_tokens:
        raise ContextExceeded(
            f"{param}: {len(found)} tokens are more than the {max(0, most_tokens)} that a prompt "
            "may have here: shorten it",
            param=param,
        )
    return list(found.ids)


def _check_length(characters: int, param: str) -> None:
    if characters > MAX_TEXT_CHARS:
        raise InvalidRequest(
            f"{param}: {characters} characters are too long; the limit is {MAX_TEXT_CHARS}",
            param=param,
        )


def _clean(text: str) -> str:
    """Lone surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

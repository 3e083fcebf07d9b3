"""Chat messages to prompt text by the model's own Jinja template, in a sandbox.

Message contents are untrusted: markup of special tokens inside them must stay text. Contents that
hold such markup are rendered with placeholders, and the result says which parts came from users.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from helix_mq.errors import InvalidRequest, ModelFormatError

_PRIVATE_USE = range(0xE000, 0xF8FF)
MAX_TEMPLATE_CHARS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a rendered prompt; `literal` text must not be read as special tokens."""

    text: str
    literal: bool


class ChatTemplate:
    """One model's template; thread-safe, since rendering keeps no state."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], markup: Sequence[str]
    ) -> None:
        """`special_tokens`: template variables such as `bos_token`. `markup`: texts of all special
        tokens. Raises ModelFormatError if the template does not parse."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelFormatError(f"a chat template of {len(source)} characters is too long")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except TemplateError as e:
            raise ModelFormatError(f"the chat template does not parse: {e}") from None
        self._variables = dict(special_tokens)
        longest_first = sorted(set(markup), key=len, reverse=True)
        self._markup = re.compile("|".join(map(re.escape, longest_first))) if markup else None

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[Piece]:
        """The prompt in pieces. InvalidRequest when the template refuses the messages."""
        replaced: dict[str, str] = {}
        safe = [self._without_markup(message, messages, replaced) for message in messages]
        try:
            text = self._template.render(
                messages=safe, add_generation_prompt=add_generation_prompt, **self._variables
            )
        except _TemplateRefusalError as e:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {e}", param="messages"
            ) from None
        except Exception as e:
            # Templates are programs; whatever breaks in one is its or the messages' fault.
            raise InvalidRequest(
                f"the model's chat template cannot render these messages: {e}", param="messages"
            ) from None
        if not replaced:
            return [Piece(text, literal=False)]
        pattern = "([" + "".join(replaced) + "])"
        return [
            Piece(replaced.get(part, part), literal=part in replaced)
            for part in re.split(pattern, text)
            if part
        ]

    def _without_markup(
        self,
        message: Mapping[str, str],
        everything: Sequence[Mapping[str, str]],
        replaced: dict[str, str],
    ) -> dict[str, str]:
        """The message with each special token's text in it put into one private-use character."""
        if self._markup is None:
            return dict(message)

        def replace(match: re.Match[str]) -> str:
            text = match.group()
            for mark, known in replaced.items():
                if known == text:
                    return mark
            mark = next(
                chr(code)
                for code in _PRIVATE_USE
                if chr(code) not in replaced
                and not any(chr(code) in value for m in everything for value in m.values())
            )
            replaced[mark] = text
            return mark

        return {
            key: value
            if key == "role" and not self._markup.search(value)
            else self._markup.sub(replace, value)
            for key, value in message.items()
        }


class _TemplateRefusalError(Exception):
    """What a template raises by `raise_exception`."""


def _raise(message: str) -> None:
    raise _TemplateRefusalError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which prompts are not.
    return json.dumps(value, ensure_ascii=False, indent=indent)

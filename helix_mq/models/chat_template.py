"""Chat messages to prompt text by the model's own Jinja template, in a sandbox.

Messages are untrusted: what spells a special token inside one must stay text. Each such spelling
is replaced by one private-use character before rendering, and the result tells what stands for
what, so that templates may trim, split and join contents as they like.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from helix_mq.errors import InvalidRequest, ModelFormatError
from helix_mq.models.spellings import Spellings

MAX_TEMPLATE_CHARS = 256 * 1024
_PRIVATE_USE = range(0xE000, 0xF900)
_ROLES = frozenset(
    {"system", "developer", "user", "assistant", "tool", "function", "ipython", "environment"}
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """`text` is the prompt, in which each key of `hidden` stands for the text it maps to."""

    text: str
    hidden: Mapping[str, str] = field(default_factory=dict)

    def restore(self, part: str) -> str:
        """A part of `text` as it was written."""
        for mark, spelling in self.hidden.items():
            part = part.replace(mark, spelling)
        return part


class ChatTemplate:
    """One model's template; thread-safe, since rendering keeps no state."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        markup: Sequence[str],
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`variables`: the template's own, such as `bos_token`. `markup`: the spellings of all
        special tokens. `now`: what templates that print the date ask.

        Raises ModelFormatError if the template does not parse.
        """
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ModelFormatError(
                f"chat template of {len(source)} characters: at most {MAX_TEMPLATE_CHARS} are read"
            )
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as e:
            raise ModelFormatError(f"the chat template does not parse: {e}") from None
        self._variables = dict(variables)
        self._spellings = tuple(markup)
        self._markup = Spellings(markup)

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> Rendered:
        """The prompt of messages with `role` and `content`.

        Raises InvalidRequest when the template refuses them, or a role could end a special token
        that the template begins.
        """
        hidden = self._marks(messages)
        marks = {spelling: mark for mark, spelling in hidden.items()}
        try:
            text = self._template.render(
                messages=[self._hide(message, marks) for message in messages]
                if marks
                else messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
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
        return Rendered(text, hidden)

    def _marks(self, messages: Sequence[Mapping[str, str]]) -> dict[str, str]:
        """A private-use character that no message holds, for each spelling that one does."""
        found: dict[str, None] = {}
        for i, message in enumerate(messages):
            role = message.get("role", "")
            if role not in _ROLES and any(role in spelling for spelling in self._spellings):
                raise InvalidRequest(
                    f"messages[{i}].role={role!r} is part of a special token's spelling: use "
                    "system, user, assistant or tool",
                    param=f"messages[{i}].role",
                )
            for value in message.values():
                found.update((match.group(), None) for match in self._markup.find(value))
        if not found:
            return {}
        taken = {letter for m in messages for value in m.values() for letter in value}
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        marks = dict(zip(free, found, strict=False))
        if len(marks) < len(found):
            raise InvalidRequest(
                "the messages hold more special tokens' spellings and private-use characters than "
                "can be told apart",
                param="messages",
            )
        return marks

    def _hide(self, message: Mapping[str, str], marks: Mapping[str, str]) -> dict[str, str]:
        return {key: self._markup.replace(value, marks) for key, value in message.items()}


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's words for training; its content is just rendered."""

    tags: set[str] = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance variable)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _TemplateRefusalError(Exception):
    """What a template raises by `raise_exception`."""


def _raise(message: str) -> None:
    raise _TemplateRefusalError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which prompts are not.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

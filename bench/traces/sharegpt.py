"""ShareGPT conversations: how much people write and models answer. A stream.

The file's items are `{"id": …, "conversations": [{"from": "human" | "gpt", "value": text}, …]}`. It
is larger than many machines' spare memory, so one conversation is held at a time. Only lengths are
kept, by the tokenizer given, else estimated from characters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from bench.traces.rows import TraceError, open_text, shown
from bench.traces.types import MAX_TOKENS, Lengths

CountTokens = Callable[[str], int]
"""Tokens in a text."""
CHARS_PER_TOKEN = 4.0
"""Rule of thumb for English with vocabularies of 32,000 and more; other languages have fewer."""
MAX_ITEM = 1 << 26
"""Characters of one conversation; the longest known has some two million."""
_CHUNK = 1 << 18
_LONGEST_WORD = 16
"""Characters that a literal or an escape, cut by the buffer's end, may take at most."""
_ASKERS = frozenset({"human", "user"})
_ANSWERERS = frozenset({"gpt", "chatgpt", "bing", "bard", "assistant"})


def estimate_tokens(text: str) -> int:
    """CHARS_PER_TOKEN characters a token, rounded up."""
    return math.ceil(len(text) / CHARS_PER_TOKEN)


def read_sharegpt(
    path: Path, count_tokens: CountTokens = estimate_tokens, *, all_turns: bool = False
) -> Iterator[Lengths]:
    """Each conversation's first question and answer, or with `all_turns` each answer.

    The prompt of a later answer is all that was said before it. Conversations that do not begin
    with a question and an answer, and turns without text, are left out: the set holds many.
    Streams. TraceError where the file is not JSON, or an item no conversation.
    """
    for where, item in _items(path):
        prompt_tokens, turns = 0, _turns(path, where, item)
        for index in range(len(turns) - 1):
            (asker, question), (answerer, answer) = turns[index], turns[index + 1]
            prompt_tokens += count_tokens(question)
            if asker in _ASKERS and answerer in _ANSWERERS and prompt_tokens <= MAX_TOKENS:
                output_tokens = count_tokens(answer)
                if prompt_tokens and 0 < output_tokens <= MAX_TOKENS:
                    yield Lengths(prompt_tokens, output_tokens)
            if not all_turns:
                break


def _turns(path: Path, where: tuple[int, int], item: Any) -> list[tuple[str, str]]:
    said = item.get("conversations") if isinstance(item, dict) else None
    if not isinstance(said, list):
        raise TraceError(path, *where, "an item without a list `conversations`")
    turns = []
    for turn in said:
        who, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (0, 0)
        if not (isinstance(who, str) and isinstance(text, str)):
            raise TraceError(path, *where, "a turn without the texts `from` and `value`")
        turns.append((who, text))
    return turns


class _Buffer:
    """The part of the file that is being read, and the line and column it starts at."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self.text = ""
        self.at = 0
        self._line, self._column = 1, 1

    def where(self, at: int | None = None) -> tuple[int, int]:
        """Line and column of a place in `text`, by default of the present one."""
        at = self.at if at is None else at
        newline = self.text.rfind("\n", 0, at)
        if newline < 0:
            return self._line, self._column + at
        return self._line + self.text.count("\n", 0, at), at - newline

    def more(self) -> bool:
        """Drops what has been read and doubles what has not. False at the file's end."""
        self._line, self._column = self.where()
        self.text = self.text[self.at :]
        self.at = 0
        chunk = self._file.read(max(_CHUNK, len(self.text)))
        self.text += chunk
        return bool(chunk)

    def next_character(self) -> str:
        """The first that is not white space, left unread; "" at the file's end."""
        while True:
            text, at = self.text, self.at
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            self.at = at
            if at < len(text):
                return text[at]
            if not self.more():
                return ""

    def error(self, problem: str, at: int | None = None) -> TraceError:
        return TraceError(self._path, *self.where(at), problem)


def _items(path: Path) -> Iterator[tuple[tuple[int, int], Any]]:
    """Each item of the array with its line and column."""
    with open_text(path) as file:
        buffer = _Buffer(path, file)
        if (found := buffer.next_character()) != "[":
            raise buffer.error(f"{shown(found)} where a JSON array begins with '['")
        buffer.at += 1
        if buffer.next_character() != "]":
            while True:
                buffer.next_character()
                where = buffer.where()
                yield where, _value(buffer)
                if (found := buffer.next_character()) != ",":
                    break
                buffer.at += 1
            if found != "]":
                raise buffer.error(f"{shown(found)} where ',' or ']' should be")
        buffer.at += 1
        if found := buffer.next_character():
            raise buffer.error(f"{shown(found)} after the end of the array")


def _value(buffer: _Buffer) -> Any:
    """The JSON value at the buffer's place, however many chunks it takes."""
    decode = json.JSONDecoder().raw_decode
    while True:
        try:
            value, end = decode(buffer.text, buffer.at)
        except json.JSONDecodeError as e:
            at, problem = e.pos, e.msg
        except RecursionError:
            raise buffer.error("nested too deeply") from None
        except ValueError:
            raise buffer.error("a number of too many digits") from None
        else:
            # A number at the very end may go on in the next chunk.
            length = end - buffer.at
            if end < len(buffer.text) or not buffer.more():
                buffer.at += length
                return value
            continue
        # Far from the end it is an error whatever follows; of an open string `at` is the start.
        if at < len(buffer.text) - _LONGEST_WORD and not problem.startswith("Unterminated"):
            raise buffer.error(problem, at)
        if len(buffer.text) - buffer.at > MAX_ITEM:
            raise buffer.error(f"an item of more than {MAX_ITEM} characters")
        offset = at - buffer.at
        if not buffer.more():
            raise buffer.error(problem, buffer.at + offset)

"""Texts of a given number of tokens, all different, the same for the same seed and number.

Different, so that no cache of prompts answers for the model. With a tokenizer the number is met;
without one a word of a short list stands for a token, which is close for the vocabularies in use.
Figures never rest on it: the server's own count is what is reported.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from helix_mq.models.tokenizer import Tokenizer

_WORDS = (
    "time year people way day man thing woman life child world school state family student "
    "group country problem hand part place case week company system program question work "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game "
    "line end member law car city name team minute idea body back face others level office door "
    "health person art war history party result change morning reason research girl guy moment "
    "air teacher force "
)
WORDS = tuple(_WORDS.split())
_TRIES = 8


class Prompts:
    def __init__(self, seed: int | str, tokenizer: Path | Tokenizer | None = None) -> None:
        """`tokenizer`: a model folder. Raises ModelFormatError."""
        self._seed = seed
        self.tokenizer = (
            Tokenizer.from_folder(tokenizer) if isinstance(tokenizer, Path) else tokenizer
        )

    def text(self, number: int, tokens: int) -> str:
        """The prompt of request `number`."""
        rng = Random(f"{self._seed}:prompt:{number}")
        words = " ".join(rng.choices(WORDS, k=tokens))
        return words if self.tokenizer is None else self._cut(words, tokens)

    def _cut(self, text: str, tokens: int) -> str:
        """`text` is too long: no tokenizer makes less than a token of a word. Where the cut text
        reads as another number of tokens, the nearest that was seen is taken."""
        assert self.tokenizer is not None
        best, keep = text, tokens
        least_off: int | None = None
        for _ in range(_TRIES):
            cut = self.tokenizer.decode(self.tokenizer.encode(text)[: max(1, keep)])
            off = len(self.tokenizer.encode(cut)) - tokens
            if least_off is None or abs(off) < least_off:
                best, least_off = cut, abs(off)
            if off == 0:
                break
            keep -= off
        return best

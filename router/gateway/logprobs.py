"""Log probabilities in OpenAI's two forms: chat's list of objects, completions' four columns.

Every output token has an entry, the end marker included, so that entries add up to usage.
"""

from __future__ import annotations

from collections.abc import Sequence

from helix_mq.models.tokenizer import Tokenizer
from router.gateway.replies import ChatLogprob, ChatLogprobs, TextLogprobs, TopChatLogprob
from router.service import Delta, TokenLogprob

_LEAST = -9999.0
"""What stands for "as good as impossible", since JSON has no infinity."""


def chat_logprobs(delta: Delta, tokenizer: Tokenizer) -> ChatLogprobs | None:
    """None when the delta carries none."""
    lp = delta.logprob
    if lp is None:
        return None
    top = [
        TopChatLogprob(
            tokenizer.token_text(token),
            max(logprob, _LEAST),
            list(tokenizer.token_bytes(token)),
        )
        for token, logprob in lp.top
    ]
    text, utf8 = tokenizer.token_text(lp.token), list(tokenizer.token_bytes(lp.token))
    return ChatLogprobs([ChatLogprob(text, max(lp.logprob, _LEAST), utf8, top)])


def joined_chat_logprobs(parts: Sequence[ChatLogprobs]) -> ChatLogprobs | None:
    return ChatLogprobs([entry for part in parts for entry in part.content]) if parts else None


class TextLogprobColumns:
    """Completions' form of one choice; keeps where each token's text begins.

    Offsets come from a detokenizer of its own: the text of a delta may lag behind its token.
    """

    def __init__(self, tokenizer: Tokenizer, *, with_top: bool) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._offset = 0
        self._with_top = with_top

    def of(self, delta: Delta) -> TextLogprobs | None:
        """One row; None when the delta carries no log probability."""
        lp = delta.logprob
        if lp is None:
            return None
        offset = self._offset
        self._offset += len(self._detokenizer.push(lp.token))
        return TextLogprobs(
            tokens=[self._tokenizer.token_text(lp.token)],
            token_logprobs=[max(lp.logprob, _LEAST)],
            top_logprobs=[self._top(lp)] if self._with_top else None,
            text_offset=[offset],
        )

    def _top(self, lp: TokenLogprob) -> dict[str, float]:
        top: dict[str, float] = {}
        for token, logprob in lp.top:
            text = self._tokenizer.token_text(token)
            # Pieces of characters look alike as text; their ids keep them apart.
            key = text if text not in top else f"token_id:{token}"
            top[key] = max(logprob, _LEAST)
        return top


def joined_text_logprobs(parts: Sequence[TextLogprobs]) -> TextLogprobs | None:
    if not parts:
        return None
    with_top = parts[0].top_logprobs is not None
    return TextLogprobs(
        [t for part in parts for t in part.tokens],
        [lp for part in parts for lp in part.token_logprobs],
        [row for part in parts for row in part.top_logprobs or ()] if with_top else None,
        [o for part in parts for o in part.text_offset],
    )

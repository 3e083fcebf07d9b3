"""Changes to logits before a token is chosen: bias, penalties, forbidden endings.

All rows' changes are gathered on the host and applied in at most one indexed operation each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nodes.model.sampler_state import Floats, Ids, SamplerState


def edited(
    logits: torch.Tensor, states: Sequence[SamplerState], positions: Sequence[int]
) -> torch.Tensor:
    """The logits as each row's parameters change them; `logits` itself where nothing changes.

    In transformers' order: bias, then repetition penalty (multiplicative, over prompt and output);
    then OpenAI's presence and frequency penalties (subtracted, over the output); last, endings
    before min_tokens are made impossible.
    """
    rows = [i for i, state in enumerate(states) if state.edits(positions[i])]
    if not rows:
        return logits
    logits = logits.clone()
    _add_biases(logits, [(i, states[i]) for i in rows if len(states[i].bias_ids)])
    _penalise(logits, [(i, states[i]) for i in rows if states[i].seen is not None])
    _forbid_endings(
        logits, [(i, states[i]) for i in rows if states[i].forbids_endings(positions[i])]
    )
    return logits


def _add_biases(logits: torch.Tensor, rows: Sequence[tuple[int, SamplerState]]) -> None:
    if not rows:
        return
    at, kept = _where(logits, [(i, state.bias_ids) for i, state in rows])
    biases = np.concatenate([state.bias_values for _, state in rows])[kept]
    logits[at] += _to(logits, biases)


def _penalise(logits: torch.Tensor, rows: Sequence[tuple[int, SamplerState]]) -> None:
    if not rows:
        return
    ids, factors, amounts = [], [], []
    for i, state in rows:
        assert state.seen is not None
        params, seen = state.params, state.seen
        ids.append((i, seen.ids))
        factors.append(np.full(len(seen.ids), params.repetition_penalty, dtype=np.float32))
        present = seen.counts > 0
        amounts.append(params.frequency_penalty * seen.counts + params.presence_penalty * present)
    at, kept = _where(logits, ids)
    factor = _to(logits, np.concatenate(factors)[kept])
    amount = _to(logits, np.concatenate(amounts)[kept].astype(np.float32))
    values = logits[at]
    logits[at] = torch.where(values < 0, values * factor, values / factor) - amount


def _forbid_endings(logits: torch.Tensor, rows: Sequence[tuple[int, SamplerState]]) -> None:
    if not rows:
        return
    at, _ = _where(logits, [(i, state.endings) for i, state in rows])
    logits[at] = -torch.inf


def _where(
    logits: torch.Tensor, ids: Sequence[tuple[int, Ids]]
) -> tuple[tuple[torch.Tensor, torch.Tensor], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Index of (row, id) pairs into `logits`, and which of the concatenated ids it covers.

    Ids come with requests: one outside the vocabulary is passed over, since on a GPU it would take
    the whole process down.
    """
    columns = np.concatenate([row_ids for _, row_ids in ids])
    rows = np.repeat([i for i, _ in ids], [len(row_ids) for _, row_ids in ids])
    kept = (columns >= 0) & (columns < logits.shape[1])
    index = np.stack([rows[kept], columns[kept]])
    both = torch.from_numpy(index).to(logits.device)
    return (both[0], both[1]), kept


def _to(logits: torch.Tensor, values: Floats) -> torch.Tensor:
    return torch.from_numpy(values).to(logits.device)

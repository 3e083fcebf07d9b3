"""One loaded slice with its KV cache: runs batches of Work, makes frames and tokens of the results.

`run` is called on the device thread, everything else on the loop thread while the device is idle;
the worker keeps to that. Between `begin` and `end` compiled threads read and write what is here.
Activations go from received buffers into one batch (the only copy) and from the result to the wire
as views.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from helix_mq.errors import KvExhausted, LocalError
from helix_mq.ids import ROUTER
from helix_mq.messages.data import RefusedItem, TokenItem, TopLogprob
from helix_mq.slice_room import KEPT_PER_USED_PAGE
from nodes.batching import SeqKey, Work
from nodes.device_faults import raise_if_lost
from nodes.frame_making import frames_of, in_order
from nodes.kv_cache import KvCache
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.sampler import LogitsNotFinite, Sampled, SamplerState
from nodes.model.sampler_drafts import Ending, sample_endings
from nodes.model.slice import ModelSlice
from nodes.payload import Payload
from nodes.plain_steps import PlainSteps
from nodes.staging import Download, joined
from nodes.steps import Batch, OutFrame, StepResult
from nodes.wire_format import WireFormats, from_wire, rows_from_wire, to_wire


@dataclass(frozen=True, slots=True)
class _Plan:
    """A batch in the order it runs: rows grouped by next hop, so that results leave as slices."""

    works: Batch
    rows: list[RowSpec]
    token_works: Batch
    hidden_works: Batch


class Engine:
    """A ModelSlice, its pages and its samplers, behind the worker's StepEngine protocol."""

    def __init__(self, node: str, model: ModelSlice, cache: KvCache) -> None:
        self._node = node
        self._model = model
        self._cache = cache
        self._pool = cache.pool
        self._samplers: dict[SeqKey, SamplerState] = {}
        self.formats = WireFormats()
        self._plain: PlainSteps | None = None
        decodes = model.decodes(cache)
        if decodes is not None:
            self._plain = PlainSteps(node, decodes, cache, self._samplers, self.formats)

    @property
    def free_pages(self) -> int:
        return self._pool.free_pages

    @property
    def total_pages(self) -> int:
        return self._pool.total_pages

    @property
    def cached_pages(self) -> int:
        return self._pool.statistics().cached_pages

    def admit(self, work: Work[Payload]) -> RefusedItem | None:
        seq, blocks = work.seq, work.payload.blocks
        ends = _ends_here(work)
        if (
            blocks is None
            and (not ends or seq in self._samplers)
            and self._pool.is_ready(seq, work.position, work.count)
        ):
            # What nearly every decode is: one look.
            return None
        if seq not in self._pool:
            if not work.position:
                self._pool.open(seq, work.layers)
            elif not self._resume(work):
                return _refuse(work, "prefix_missing", f"{self._node} has no such prefix any more")
        elif work.position < self._pool.shared_tokens(seq):
            return _refuse(work, "out_of_order", f"position {work.position} is others' too")
        if blocks is not None:
            self._pool.name(seq, blocks)
        if ends and seq not in self._samplers:
            spec = work.payload.spec
            if spec is None:
                return _refuse(work, "no_spec", "the last hop got no sampling parameters")
            history = work.payload.history
            self._samplers[seq] = SamplerState(
                params=spec.sampling,
                prompt_tokens=spec.prompt_tokens,
                history=history if history is not None else np.empty(0, dtype=np.int32),
                eos_ids=self._model.config.eos_ids,
            )
        try:
            self._pool.ensure(seq, work.position + work.count)
        except KvExhausted as e:
            return _refuse(work, e.code, f"{self._node}: {e.message}")
        return None

    def draft_room(self, work: Work[Payload]) -> int:
        return self._pool.draft_room(work.seq, work.position + 1, len(work.drafts))

    def _resume(self, work: Work[Payload]) -> bool:
        """Opens a sequence whose first tokens others have computed, if what they left is here."""
        blocks = work.payload.blocks
        _, name = next(blocks.ends(), (0, b"")) if blocks is not None else (0, b"")
        return self._pool.resume(work.seq, work.layers, work.position, name)

    def _share(self, batch: Batch, refused: list[RefusedItem]) -> None:
        """What a step has computed of prompts, others may go on from; not from what overflowed."""
        bad = {(item.request, item.attempt) for item in refused} if refused else ()
        for work in batch:
            if bad and work.seq in bad:
                self._pool.distrust(work.seq)
            elif work.payload.blocks is not None:
                self._pool.publish(work.seq, work.position + work.count)

    def free(self, seq: SeqKey) -> None:
        self._samplers.pop(seq, None)
        self._nothing_goes_on()
        if seq in self._pool:
            self._pool.free(seq)

    def check(self) -> None:
        self._pool.check()

    def watch(self, lost: Callable[[str], None]) -> None:
        """See ModelSlice.watch."""
        self._model.watch(lost)

    def close(self) -> None:
        """After the last step. Blocks until what the model started has ended."""
        if self._plain is not None:
            self._plain.close()
        self._model.close()

    def grow(self, total_pages: int) -> None:
        """More KV pages, those in use with what they hold. Device thread, while nothing else
        touches the engine. Raises torch.OutOfMemoryError with all as it was."""
        self._nothing_goes_on()
        self._cache.grow(total_pages)

    def shrink(self, least_pages: int) -> None:
        """Fewer KV pages: so many, or KEPT_PER_USED_PAGE for each in use if that is more. Device
        thread, while nothing else touches the engine."""
        used = self._pool.total_pages - self._pool.free_pages
        wanted = max(1, least_pages, KEPT_PER_USED_PAGE * used)
        self._nothing_goes_on()
        self._cache.shrink(min(self._pool.total_pages, wanted))

    def _nothing_goes_on(self) -> None:
        if self._plain is not None:
            self._plain.forget()

    def begin(self, batch: Batch) -> int | None:
        """See StepEngine.begin()."""
        return self._plain.begin(batch) if self._plain is not None else None

    def again(self, batch: Batch, payload: memoryview) -> int | None:
        """See StepEngine.again()."""
        return self._plain.again(batch, payload) if self._plain is not None else None

    def end(self) -> StepResult | None:
        """See StepEngine.end()."""
        assert self._plain is not None
        return self._plain.end()

    def run(self, batch: Batch) -> StepResult:
        """One pass over the slice's layers for all rows, then sampling for those that end here.
        DeviceLost where there will be no other."""
        try:
            return self._run(batch)
        except RuntimeError as e:
            raise_if_lost(self._model.device, e)
            raise

    def _run(self, batch: Batch) -> StepResult:
        started_s = time.perf_counter()
        plain = self._plain.run(batch) if self._plain is not None else None
        if plain is not None:
            return plain
        plan = self._plan(batch)
        with torch.inference_mode():
            output = self._model.forward(
                SliceBatch(
                    rows=plan.rows,
                    token_ids=_token_ids(plan.token_works),
                    hidden=_hidden(plan.hidden_works, self._model.device),
                ),
                self._cache,
                brief=True,
            )
            onward = any(w.next_hop != ROUTER for w in plan.works)
            # On its way while tokens are sampled.
            leaving = Download(output.hidden) if onward else None
            tokens, refused = self._sample(plan.works, output.logits)
            # Waits for the device: until here it may still be computing.
            on_host = leaving.wait() if leaving is not None else None
            computed_s = time.perf_counter()
            frames = self._frames(plan.works, on_host) if on_host is not None else []
        self._share(batch, refused)
        return StepResult(
            frames=frames,
            tokens=tokens,
            refused=refused,
            seconds=time.perf_counter() - started_s,
            num_tokens=sum(w.count for w in batch),
            layer_tokens=sum(w.count * len(w.layers) for w in batch),
            began_s=started_s,
            computed_s=computed_s,
        )

    def _plan(self, batch: Batch) -> _Plan:
        works = in_order(batch)
        rows: list[RowSpec] = []
        token_works: Batch = []
        hidden_works: Batch = []
        for w in works:
            ends = _ends_here(w)
            wanted = 1 + len(w.drafts) if ends else 1
            rows.append(RowSpec(w.seq, w.position, w.count, w.layers, ends, wanted))
            (token_works if w.payload.is_tokens else hidden_works).append(w)
        return _Plan(works, rows, token_works, hidden_works)

    def _frames(self, works: Batch, on_host: torch.Tensor) -> list[OutFrame]:
        def wire(start: int, end: int, peer: str) -> tuple[str, memoryview]:
            return to_wire(on_host[start:end], self.formats.of(peer))

        return frames_of(self._node, works, on_host.shape[1], wire)

    def _sample(
        self, works: Batch, logits: torch.Tensor
    ) -> tuple[list[TokenItem], list[RefusedItem]]:
        """Tokens of the rows that end here; refusals of those whose logits are no numbers."""
        ending = [w for w in works if _ends_here(w)]
        if not ending:
            return [], []
        if logits.shape[0] != sum(1 + len(w.drafts) for w in ending):
            raise LocalError(f"the slice gave no logits for {len(ending)} ending rows")
        ends = [
            Ending(self._samplers[w.seq], w.position + w.count - len(w.drafts), w.drafts)
            for w in ending
        ]
        tokens: list[TokenItem] = []
        refused: list[RefusedItem] = []
        for work, end, found in zip(ending, ends, sample_endings(logits, ends), strict=True):
            last = len(found) - 1
            tokens += [
                _token_item(work, end.position + i, result, i, more=i < last)
                for i, result in enumerate(found)
            ]
            if not found:
                fault = LogitsNotFinite((0,))
                refused.append(_refuse(work, fault.code, f"{self._node}: {fault.message}"))
        return tokens, refused


def _token_ids(works: Batch) -> torch.Tensor | None:
    """int64 [tokens] of the rows that start with token ids."""
    if not works:
        return None
    ids = [np.frombuffer(w.payload.data, dtype=np.int32) for w in works]
    return torch.from_numpy(np.concatenate(ids).astype(np.int64))


def _hidden(works: Batch, device: torch.device) -> torch.Tensor | None:
    """[tokens, width] of the rows that arrive as activations, where `device` copies from."""
    if not works:
        return None
    first = works[0].payload
    if device.type == "cpu" and all(w.payload.dtype == first.dtype for w in works):
        return rows_from_wire([w.payload.data for w in works], first.dtype, first.width)
    parts = [from_wire(w.payload.data, w.payload.dtype, w.payload.width) for w in works]
    if len({part.dtype for part in parts}) > 1:
        parts = [part.float() for part in parts]
    return joined(parts, device)


def _ends_here(work: Work[Payload]) -> bool:
    """Its route ends here, and its tokens are to be sampled after."""
    return work.sample and work.next_hop == ROUTER


def _token_item(
    work: Work[Payload], position: int, result: Sampled, number: int, *, more: bool
) -> TokenItem:
    """`number`: of the tokens of its pass."""
    return TokenItem(
        request=work.seq.request,
        attempt=work.seq.attempt,
        position=position,
        token=result.token,
        logprob=result.logprob,
        top=tuple(TopLogprob(*pair) for pair in result.top_logprobs) if result.top_logprobs else (),
        more=more,
        drafted=0 if number else len(work.drafts),
    )


def _refuse(work: Work[Payload], code: str, reason: str) -> RefusedItem:
    return RefusedItem(work.seq.request, work.seq.attempt, code, reason)

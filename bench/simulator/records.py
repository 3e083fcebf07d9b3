"""The recorder: what a simulation tells of itself as it runs, kept small enough for any length.

Only what happens inside the window [warmup_s, warmup_s + duration_s) counts: a request by its end,
a first token by its own time, a gap by the token that ends it, a step by the part of it inside.
Calls come in the order of their times and cost O(1). What is kept grows with requests (one record
each), nodes and links; not with tokens or steps. No statistics here: see `stats`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bench.simulator.records_tallies import (
    Histogram,
    KvTally,
    LinkTally,
    NodeTally,
    Series,
    Window,
)

DEFAULT_BINS = 120


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that ended inside the window. Times in virtual seconds since the run's start.

    `output_tokens` were asked for, `tokens` came. `first_token_s` is None where none came.
    """

    request: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    first_token_s: float | None
    last_token_s: float
    end_s: float
    tokens: int
    ok: bool
    reason: str
    direct: bool | None = None
    """Whether its tokens went straight to the first hop, on its last route; None where nobody said
    so."""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None with fewer than two."""
        if self.first_token_s is None or self.tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.tokens - 1)

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.arrival_s


class _Open:
    """A request on its way."""

    __slots__ = (
        "arrival_s",
        "direct",
        "first_s",
        "last_s",
        "output_tokens",
        "prompt_tokens",
        "tokens",
    )

    def __init__(self, arrival_s: float, prompt_tokens: int, output_tokens: int) -> None:
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.tokens = 0
        self.first_s = 0.0
        self.last_s = 0.0
        self.direct: bool | None = None


class Recorder:
    """Takes a run's events. `bins`: parts of the window that timelines are drawn in."""

    def __init__(
        self, warmup_s: float = 0.0, duration_s: float = 600.0, bins: int = DEFAULT_BINS
    ) -> None:
        self.window = window = Window(warmup_s, warmup_s + duration_s, bins)
        self._start_s, self._end_s, self._bin_s = window.start_s, window.end_s, window.bin_s
        self._open: dict[str, _Open] = {}
        self.records: list[RequestRecord] = []
        self.arrived = 0
        """Requests that arrived inside the window."""
        self.reasons: Counter[str] = Counter()
        """Why requests ended inside the window."""
        self.ttft: list[float] = []
        self.gaps = Histogram()
        """Between a request's tokens (inter-token latency), seconds."""
        self.tokens = 0
        """Output tokens inside the window, first tokens included."""
        self.first_tokens = 0
        self.prompt_tokens = 0
        """Of requests whose first token came inside the window."""
        self.tokens_by_bin = [0] * bins
        self.behind_s = 0.0
        """That decodes waited at nodes while a step with prompt tokens ran, summed over decodes."""
        self.nodes: dict[str, NodeTally] = {}
        self.links: dict[tuple[str, str], LinkTally] = {}
        self.kv: dict[str, KvTally] = {}
        self.kv_used_by_bin = [0] * bins
        self.kv_total_by_bin = [0] * bins
        self.kv_peak_by_bin = [0.0] * bins
        """Of the fullest node, as a share of its pages."""
        self.waiting = Series(window)
        self.running = Series(window)
        self.in_system = Series(window)
        """Requests arrived and not ended."""
        self.sampled = False
        """Whether on_waiting was ever called."""
        self.queues: dict[str, Series] = {}

    @property
    def unfinished(self) -> int:
        """Requests that have arrived at any time and not ended."""
        return len(self._open)

    def close(self) -> None:
        """Extends what still holds to the window's end. May be called again."""
        for series in (self.waiting, self.running, self.in_system, *self.queues.values()):
            series.close()

    # -- requests ---------------------------------------------------------------

    def on_arrival(self, request: str, at_s: float, prompt_tokens: int, output_tokens: int) -> None:
        """`request` is new. `output_tokens`: as many as it will get if nothing goes wrong."""
        self._open[request] = _Open(at_s, prompt_tokens, output_tokens)
        if self._start_s <= at_s < self._end_s:
            self.arrived += 1
        self.in_system.set(at_s, len(self._open))

    def on_way(self, request: str, direct: bool) -> None:
        """An open request goes on a route, its tokens straight back to the first hop or not."""
        self._open[request].direct = direct

    def on_token(self, request: str, at_s: float, count: int) -> None:
        """`count` tokens of an open request reach its client at once."""
        state = self._open[request]
        inside = self._start_s <= at_s < self._end_s
        if state.tokens:
            if inside:
                self.gaps.add((at_s - state.last_s) / count, count)
        else:
            state.first_s = at_s
            if inside:
                self.first_tokens += 1
                self.prompt_tokens += state.prompt_tokens
                self.ttft.append(at_s - state.arrival_s)
        state.tokens += count
        state.last_s = at_s
        if inside:
            self.tokens += count
            self.tokens_by_bin[self._bin(at_s)] += count

    def on_end(self, request: str, at_s: float, ok: bool, reason: str) -> None:
        """The request is over; `reason` is a finish reason or an error's code."""
        state = self._open.pop(request)
        self.in_system.set(at_s, len(self._open))
        if not self._start_s <= at_s < self._end_s:
            return
        self.reasons[reason] += 1
        self.records.append(
            RequestRecord(
                request,
                state.arrival_s,
                state.prompt_tokens,
                state.output_tokens,
                state.first_s if state.tokens else None,
                state.last_s,
                at_s,
                state.tokens,
                ok,
                reason,
                state.direct,
            )
        )

    # -- machines ---------------------------------------------------------------

    def on_step(
        self,
        node: str,
        start_s: float,
        end_s: float,
        decode_rows: int,
        prefill_tokens: int,
        layers: int,
    ) -> None:
        """A node's step of `layers` layers over decodes (a token each) and prompt tokens.

        Steps of one node do not overlap. Rows and tokens count where the step starts inside.
        """
        tally = self.nodes.get(node)
        if tally is None:
            tally = self.nodes[node] = NodeTally(self.window)
        tally.busy.hold(start_s, end_s, 1.0)
        if not self._start_s <= start_s < self._end_s:
            return
        tally.steps += 1
        tokens = decode_rows + prefill_tokens
        tally.tokens_squared += tokens * tokens
        tally.layer_rows += tokens * layers
        if decode_rows:
            tally.decode_steps += 1
            tally.decode_rows += decode_rows
            tally.decode_rows_squared += decode_rows * decode_rows
            tally.decode_row_s += decode_rows * (end_s - start_s)
        if prefill_tokens:
            tally.prefill_steps += 1
            tally.prefill_tokens += prefill_tokens
            tally.prefill_s += end_s - start_s
            tally.mixed_row_s += decode_rows * (end_s - start_s)

    def on_behind(self, at_s: float, waiting_s: float) -> None:
        """Decodes that reach a node now wait so long in all for the prompt tokens it runs."""
        if self._start_s <= at_s < self._end_s:
            self.behind_s += waiting_s

    def on_link(self, src: str, dst: str, start_s: float, end_s: float, size_bytes: int) -> None:
        """A frame holds the link from `start_s` to `end_s`."""
        tally = self.links.get((src, dst))
        if tally is None:
            tally = self.links[src, dst] = LinkTally()
        first, last = self._start_s, self._end_s
        if end_s <= first or start_s >= last:
            return
        if end_s < last:
            tally.frames += 1
            tally.sent_bytes += size_bytes
        inside_s = (end_s if end_s < last else last) - (start_s if start_s > first else first)
        tally.busy_s += inside_s

    def on_kv(self, at_s: float, node: str, used_pages: int, total_pages: int) -> None:
        """A sample of a node's KV pages."""
        if not self._start_s <= at_s < self._end_s or total_pages <= 0:
            return
        tally = self.kv.get(node)
        if tally is None:
            tally = self.kv[node] = KvTally()
        share = used_pages / total_pages
        tally.samples += 1
        tally.total += share
        if share > tally.peak:
            tally.peak = share
        index = self._bin(at_s)
        self.kv_used_by_bin[index] += used_pages
        self.kv_total_by_bin[index] += total_pages
        if share > self.kv_peak_by_bin[index]:
            self.kv_peak_by_bin[index] = share

    def on_waiting(self, at_s: float, waiting_requests: int, running_requests: int) -> None:
        """From `at_s` on, so many wait for admission and so many run."""
        self.sampled = True
        self.waiting.set(at_s, waiting_requests)
        self.running.set(at_s, running_requests)

    def on_queue(self, at_s: float, node: str, rows: int) -> None:
        """From `at_s` on, so many rows wait at the node for a step. Optional: for congestion."""
        series = self.queues.get(node)
        if series is None:
            series = self.queues[node] = Series(self.window)
        series.set(at_s, rows)

    def _bin(self, at_s: float) -> int:
        index = int((at_s - self._start_s) / self._bin_s)
        # Rounding may put a time just below the end one bin too far.
        return index if index < self.window.bins else self.window.bins - 1

"""The tensors of fixed place that recorded decode steps read: filled anew for each step.

All recordings of a slice share them, as only one runs at a time. A row of nobody is token 0 at
position 0 with the cache's spare page in its table: it reads and writes nothing of anybody's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from helix_mq.models.config import ModelConfig
from nodes.kv_cache import KvCache
from nodes.model.attention.paged import PagedRows
from nodes.model.batch import RowSpec, SliceBatch
from nodes.model.decode_buckets import MAX_ROWS, StepShape
from nodes.staging import Upload


class DecodeInputs:
    def __init__(
        self, config: ModelConfig, table_entries: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._width = config.hidden_size
        self._device = device
        self._ids = Upload(MAX_ROWS, torch.int64, device)
        self._positions = Upload(MAX_ROWS, torch.int64, device)
        self._hidden = Upload(MAX_ROWS * self._width, dtype, device)
        self._tables = Upload(table_entries, torch.int32, device)
        self._starts = torch.arange(MAX_ROWS + 1, dtype=torch.int32, device=device)

    @property
    def nbytes(self) -> int:
        """On the device."""
        parts = (self._ids, self._positions, self._hidden, self._tables)
        return sum(part.nbytes for part in parts)

    # -- filling ----------------------------------------------------------------

    def fill(self, shape: StepShape, batch: SliceBatch, cache: KvCache) -> None:
        """With `batch`'s rows, one token each over shape.layers, and rows of nobody behind them."""
        rows = batch.rows
        count = shape.rows
        positions = self._positions.host(count).numpy()
        positions[: len(rows)] = [row.position for row in rows]
        positions[len(rows) :] = 0
        self._positions.send(count)
        if batch.token_ids is not None:
            ids = self._ids.host(count)
            ids[: len(rows)] = batch.token_ids
            ids[len(rows) :] = 0
            self._ids.send(count)
        if batch.hidden is not None:
            hidden = self._hidden.host(count * self._width).view(count, self._width)
            hidden[: len(rows)] = batch.hidden
            hidden[len(rows) :] = 0
            self._hidden.send(count * self._width)
        self._fill_tables(shape, rows, cache)
        fresh = _fresh_pages(shape, rows, cache)
        if len(fresh):
            cache.clear_pages(torch.from_numpy(fresh).to(self._device))

    def _fill_tables(self, shape: StepShape, rows: Sequence[RowSpec], cache: KvCache) -> None:
        pool, layers = cache.pool, shape.layers
        flat = self._tables.host(shape.table_entries).numpy()
        tables = flat.reshape(len(layers), shape.rows, shape.pages)
        for i, row in enumerate(rows):
            skip = layers.first - pool.layers(row.seq).first
            pages = row.position // cache.page_tokens + 1
            own = pool.table(row.seq)[skip : skip + len(layers), :pages]
            tables[:, i, :pages] = own
            # What lies behind a row's pages is read by no kernel, but must be a page's number.
            tables[:, i, pages:] = own[:, :1]
        tables[:, len(rows) :] = cache.spare_page
        self._tables.send(shape.table_entries)

    # -- reading, on the device ---------------------------------------------------

    def token_ids(self, shape: StepShape) -> torch.Tensor:
        """int64 [rows]."""
        return self._ids.device_flat[: shape.rows]

    def hidden(self, shape: StepShape) -> torch.Tensor:
        """[rows, hidden] in the compute dtype."""
        flat = self._hidden.device_flat[: shape.rows * self._width]
        return flat.view(shape.rows, self._width)

    def positions(self, shape: StepShape) -> torch.Tensor:
        """int64 [rows]."""
        return self._positions.device_flat[: shape.rows]

    def paged_rows(self, shape: StepShape, page_tokens: int) -> PagedRows:
        """Launches what computes lengths from positions."""
        lens = (self.positions(shape) + 1).to(torch.int32)
        kv_starts = torch.zeros(shape.rows + 1, dtype=torch.int32, device=self._device)
        torch.cumsum(lens, 0, out=kv_starts[1:])
        return PagedRows(
            starts=self._starts[: shape.rows + 1],
            kv_starts=kv_starts,
            kv_lens=lens,
            tables=self._tables_of(shape),
            max_count=1,
            max_kv_len=shape.pages * page_tokens,
        )

    def slots(self, shape: StepShape, page_tokens: int) -> torch.Tensor:
        """int64 [layers, rows]: where each row's keys and values go; of token-major pages."""
        positions = self.positions(shape)
        column = (positions // page_tokens)[None, :, None].expand(len(shape.layers), -1, 1)
        pages = self._tables_of(shape).gather(2, column)[:, :, 0]
        return pages.to(torch.int64) * page_tokens + positions % page_tokens

    def _tables_of(self, shape: StepShape) -> torch.Tensor:
        flat = self._tables.device_flat[: shape.table_entries]
        return flat.view(len(shape.layers), shape.rows, shape.pages)


def _fresh_pages(
    shape: StepShape, rows: Sequence[RowSpec], cache: KvCache
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Pages that get their first token now; see KvCache.clear_pages."""
    if cache.page_tokens == 1:
        return np.empty(0, np.int64)
    pool, layers = cache.pool, shape.layers
    found = [
        pool.table(row.seq)[
            layers.first - pool.layers(row.seq).first :, row.position // cache.page_tokens
        ][: len(layers)]
        for row in rows
        if row.position % cache.page_tokens == 0
    ]
    return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)

"""The chunks of a step as tensors: one forward of the model over all of them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..attention import AttentionMetadata
from ..kvcache import KVCache, LayerPages
from .scheduler import Chunk


class Model(Protocol):
    """What the engine runs.

    A model may state as attributes `vocab_size`, how many token ids it knows, and `max_position_embeddings`, how many
    positions. Requests are held to what is stated, and to nothing else.
    """

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        caches: Mapping[int, LayerPages],
        metadata: Mapping[str, AttentionMetadata],
        logits_rows: Tensor,
    ) -> Tensor:
        """Write the K and V of `tokens` (int64 `[T]`, at `positions` int64 `[T]`) into the caches and attend.

        `caches` maps a layer to its K and V pages, on the device and, if there are host pages that a block table may
        name, on the host; asking it for a layer waits until that layer's pages have arrived, so ask when you need it.
        `metadata` maps a group to its part of the batch. Returns float32 logits `[R, vocab_size]` of the rows
        `logits_rows` (int64 `[R]`).
        """
        ...


def run_chunks(model: Model, cache: KVCache, chunks: Sequence[Chunk], device: torch.device) -> Tensor:
    """Logits `[R, vocab_size]` after the last known token of every request that a chunk completes."""
    tokens: list[int] = []
    positions: list[int] = []
    logits_rows: list[int] = []
    for chunk in chunks:
        start = chunk.request.pages.num_computed
        tokens += chunk.request.tokens(start, start + chunk.num_tokens)
        positions += range(start, start + chunk.num_tokens)
        if chunk.is_last:
            logits_rows.append(len(tokens) - 1)
    return model.forward(
        *(torch.tensor(x, dtype=torch.int64, device=device) for x in (tokens, positions)),
        cache.layers,
        _metadata(cache, chunks, device),
        torch.tensor(logits_rows, dtype=torch.int64, device=device),
    )


def rebuild_windows(model: Model, cache: KVCache, request, device: torch.device) -> None:
    """Recompute the windows that the request's plan could not find."""
    plan = request.pages.plan.rebuild
    tokens = torch.tensor(request.tokens(plan.first[0], plan.end), dtype=torch.int64, device=device)
    model.rebuild_windows(tokens, plan, cache.layers, request.pages.block_tables, cache.page_size)


def _metadata(cache: KVCache, chunks: Sequence[Chunk], device: torch.device) -> dict[str, AttentionMetadata]:
    sequences = [chunk.request.pages for chunk in chunks]
    query_lens = [chunk.num_tokens for chunk in chunks]
    seqlens_k = [s.num_computed + q for s, q in zip(sequences, query_lens, strict=True)]
    return {
        name: AttentionMetadata.build(
            [s.block_tables[name] for s in sequences],
            seqlens_k,
            query_lens,
            cache.page_size,
            device,
            window=pool.spec.window,
        )
        for name, pool in cache.pools.items()
    }

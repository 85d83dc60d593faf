"""A model in exact integer arithmetic whose every number depends on every key that its layers may see.

Layer l stores x_l at each position and computes x_(l+1) there as a weighted sum, modulo a prime, of the x_l that its
window shows, with weights that depend on the distance. One wrong, missing or additional key anywhere changes the
output, and batching, chunking or paging cannot: so runs with and without a cache must agree exactly.
"""

import torch
from torch import Tensor

from swa_attn.attention import AttentionMetadata
from swa_attn.kvcache import GroupSpec

PRIME = 65521  # float32 holds every residue exactly
VOCAB = 61


class ChainModel:
    """`windows`: the window of each layer, None for full attention. Layers of equal window share a group."""

    def __init__(self, windows: tuple[int | None, ...]) -> None:
        self.windows = windows
        self.num_forwards = 0
        layers = {kind: tuple(i for i, w in enumerate(windows) if w == kind) for kind in windows}
        self.groups = tuple(
            GroupSpec("full" if kind is None else f"swa{kind}", layers[kind], 1, 1, 2, kind) for kind in layers
        )
        self._group_of = {layer: g.name for g in self.groups for layer in g.layers}

    def forward(self, tokens: Tensor, positions: Tensor, caches, metadata, logits_rows: Tensor) -> Tensor:
        self.num_forwards += 1
        x = (tokens * 7919 + 13) % PRIME
        for layer, window in enumerate(self.windows):
            pages, meta = caches[layer], metadata[self._group_of[layer]]
            self._store(x, positions, pages, meta.slot_mapping)
            x = self._attend(x, positions, pages, meta, window)
        state = x[logits_rows]
        vocabulary = torch.arange(VOCAB)
        return ((state[:, None] * (2 * vocabulary + 3) + vocabulary**3) % 1009).float() / 100

    def _store(self, x: Tensor, positions: Tensor, pages, slots: Tensor) -> None:
        k_cache, v_cache = (cache.view(-1, cache.shape[-1]) for cache in pages[:2])
        k_cache[slots] = x[:, None].float()
        v_cache[slots] = torch.stack([(PRIME - x).float(), positions.float()], 1)

    def _attend(self, x, positions, pages, meta, window) -> Tensor:
        page_size = pages[0].shape[1]
        k_cache, v_cache = (_with_host(*parts).flatten(0, 1).flatten(1) for parts in (pages[::2], pages[1::2]))
        out = torch.empty_like(x)
        bounds = meta.cu_seqlens_q.tolist()
        for seq, seqlen_k in enumerate(meta.seqlens_k.tolist()):
            rows = slice(bounds[seq], bounds[seq + 1])
            query = positions[rows]
            assert query.tolist() == list(range(seqlen_k - len(query), seqlen_k))
            first = 0 if window is None else max(0, int(query[0]) - window + 1)
            keys = torch.arange(first, seqlen_k)
            slots = meta.block_table[seq].long()[keys // page_size]
            assert (slots >= 0).all(), "a visible key's page is absent"
            slots = slots * page_size + keys % page_size
            k, v = k_cache[slots, 0], v_cache[slots]
            assert torch.isfinite(k).all() and torch.isfinite(v).all(), "a visible key was never written"
            assert (k + v[:, 0] == PRIME).all() and (v[:, 1] == keys).all(), "a visible key is another position's"
            distance = query[:, None] - keys
            seen = (distance >= 0) & (distance < (window or seqlen_k))
            out[rows] = (seen * (distance * 31 % 97 + 1) * k.long()).sum(1) % PRIME
        return out


class RebuildingModel(ChainModel):
    """A `ChainModel` that can make windows from full-attention pages; made of nothing but what is documented."""

    num_rebuilds = 0

    def rebuild_windows(self, tokens: Tensor, plan, caches, block_tables, page_size: int) -> None:
        self.num_rebuilds += 1
        x = (tokens * 7919 + 13) % PRIME
        for layer, window in enumerate(self.windows):
            first, first_out = plan.first[layer : layer + 2]
            if first == plan.end:
                return
            pages, table = caches[layer], block_tables[self._group_of[layer]]
            positions = torch.arange(first, plan.end)
            if window is not None:
                slots = torch.tensor(table)[positions // page_size] * page_size + positions % page_size
                self._store(x, positions, pages, slots)
            if first_out == plan.end:
                return
            rows = AttentionMetadata.build(
                [table], [plan.end], [plan.end - first_out], page_size, tokens.device, window=window
            )
            x = self._attend(x[first_out - first :], positions[first_out - first :], pages, rows, window)


def _with_host(device: Tensor, host: Tensor | None = None) -> Tensor:
    """Device and host pages in one id space."""
    return device if host is None else torch.cat([device, host])

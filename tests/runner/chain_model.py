"""A model in exact integer arithmetic whose every number depends on every key that its layers may see.

Layer l stores x_l at each position and computes x_(l+1) there as a weighted sum, modulo a prime, of the x_l that its
window shows, with weights that depend on the distance. One wrong, missing or additional key anywhere changes the
output, and batching, chunking or paging cannot: so runs with and without a cache must agree exactly.
"""

import torch
from torch import Tensor

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
            k_cache, v_cache = (cache.view(-1, cache.shape[-1]) for cache in caches[layer])
            meta = metadata[self._group_of[layer]]
            k_cache[meta.slot_mapping] = x[:, None].float()
            v_cache[meta.slot_mapping] = torch.stack([(PRIME - x).float(), positions.float()], 1)
            x = self._attend(x, positions, k_cache, v_cache, meta, caches[layer][0].shape[1], window)
        state = x[logits_rows]
        vocabulary = torch.arange(VOCAB)
        return ((state[:, None] * (2 * vocabulary + 3) + vocabulary**3) % 1009).float() / 100

    def _attend(self, x, positions, k_cache, v_cache, meta, page_size, window) -> Tensor:
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

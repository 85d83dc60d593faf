"""The KV cache of one device: its memory, tier by tier, under `SequenceCache`."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .planner import Planner
from .pool import PagePool
from .prefix_cache import WritePolicy
from .sequence_cache import SequenceCache
from .shelf import Shelf
from .snapshot_policy import SnapshotPolicy
from .spec import GroupSpec
from .storage import DevicePages
from .tier import Tier
from .transfer import InstantMover


class KVCache(SequenceCache):
    """Pools, block tables and prefix cache for `groups`: at most one full group and any number of windowed ones.

    Args:
        groups: distinct names, disjoint layers.
        page_size: token slots per page, the same in all pools.
        num_pages: device pages of each group, by name.
        dtype, device: of the pools.
        fingerprint: names whatever decides the contents of K and V (weights, value scale, rotary settings).
        enable_prefix_cache: False keeps nothing after a sequence has ended.
        policy: where window snapshots are taken.
        planner: chooses what to do with a hit. None: one that rebuilds no windows, because that takes a model that can.

    Not thread-safe.
    """

    def __init__(
        self,
        groups: Sequence[GroupSpec],
        page_size: int,
        num_pages: Mapping[str, int],
        dtype: torch.dtype,
        device: torch.device | str,
        fingerprint: str,
        *,
        enable_prefix_cache: bool = True,
        policy: SnapshotPolicy | None = None,
        planner: Planner | None = None,
    ) -> None:
        check_groups(groups, num_pages)
        if page_size < 1:
            raise ValueError(f"KVCache: page_size must be at least 1, got {page_size}")
        pools = [PagePool(g, page_size * g.bytes_per_token(dtype), num_pages[g.name]) for g in groups]
        self.memory = {g.name: DevicePages(g, page_size, num_pages[g.name], dtype, device) for g in groups}
        super().__init__(
            groups,
            page_size,
            [Shelf(Tier.DEVICE, pools)],
            InstantMover(),
            dtype,
            fingerprint,
            enable_prefix_cache=enable_prefix_cache,
            policy=policy,
            planner=planner or Planner(rebuild=False),
        )

    def layer(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """The K and V pages `[num_pages, page_size, num_kv_heads, dim]` of the model's layer `layer_idx`: views."""
        group = next(g for g in self.groups if layer_idx in g.layers)
        return self.memory[group.name].layer(group.layers.index(layer_idx))

    @staticmethod
    def virtual(
        groups: Sequence[GroupSpec],
        page_size: int,
        dtype: torch.dtype,
        budgets: Mapping[Tier, int],
        *,
        policy: SnapshotPolicy | None = None,
        planner: Planner | None = None,
        write_policy: WritePolicy = WritePolicy.THROUGH,
        lower_dtype: torch.dtype | None = None,
    ) -> SequenceCache:
        """The same cache without memory: pages are numbers, transfers end at once and are only counted.

        Args:
            budgets: bytes of each tier, which its groups share; Tier.DEVICE must be there, and the tiers above a given
                one.
            lower_dtype: of the full group's pages below the device; None means `dtype`.
        """
        check_groups(groups, {g.name: 1 for g in groups})
        tiers = sorted(budgets)
        if tiers != list(range(len(tiers))) or not tiers:
            raise ValueError(f"KVCache.virtual: budgets must be for DEVICE, then HOST, then DISK, got {list(budgets)}")
        shelves = []
        for tier in tiers:
            sizes = [
                page_size * g.bytes_per_token(lower_dtype if lower_dtype and tier and g.window is None else dtype)
                for g in groups
            ]
            pools = [PagePool(g, size, None) for g, size in zip(groups, sizes, strict=True)]
            shelves.append(Shelf(Tier(tier), pools, budgets[tier]))
        mover = InstantMover()
        return SequenceCache(
            groups, page_size, shelves, mover, dtype, "", policy=policy, planner=planner, write_policy=write_policy
        )


def check_groups(groups: Sequence[GroupSpec], num_pages: Mapping[str, int]) -> None:
    """Raises ValueError unless the groups have distinct names and layers, at most one is full, and all have pages."""
    names = [g.name for g in groups]
    layers = [layer for g in groups for layer in g.layers]
    if not groups or len(set(names)) != len(names):
        raise ValueError(f"KVCache: groups must be at least one, with distinct names, got {names}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"KVCache: a layer belongs to one group only, got {[g.layers for g in groups]}")
    if sum(g.window is None for g in groups) > 1:
        raise ValueError(f"KVCache: at most one group may have no window, got {names}")
    if set(num_pages) != set(names):
        raise ValueError(f"KVCache: num_pages must name exactly the groups {names}, got {list(num_pages)}")

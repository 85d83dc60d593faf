"""The KV cache of one device: its memory, tier by tier, under `SequenceCache`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from .hashing import layout_digest
from .planner import Planner
from .pool import PagePool
from .prefix_cache import WritePolicy
from .secret_keys import check_secret
from .sequence_cache import SequenceCache, check_fingerprint
from .shelf import Shelf
from .snapshot_policy import SnapshotPolicy
from .spec import GroupSpec
from .storage import DevicePages, HostPages, host_page_bytes
from .store import Store
from .stream_mover import StreamMover, Streams
from .thread_mover import ThreadMover
from .tier import Tier
from .transfer import InstantMover, Mover


@dataclass(frozen=True)
class LowerTiers:
    """What a cache has below the device.

    Args:
        host_pages: host pages of each group, by name.
        store: below the host, or None; it holds records of this cache's layout only (see `KVCache.store_layout`). The
            cache does not close it.
        disk_bytes: what may be kept in the store.
        dtype: of the full group's pages below the device: torch.float8_e4m3fn keeps them with a scale per layer, page and
            head, in half the bytes of bfloat16, and rounded. None: the cache's own, bit for bit. Windowed pages always
            stay as they are.
        write_policy: when pages are copied down.
    """

    host_pages: Mapping[str, int]
    store: Store | None = None
    disk_bytes: int | None = None
    dtype: torch.dtype | None = None
    write_policy: WritePolicy = WritePolicy.THROUGH

    def __post_init__(self) -> None:
        if (self.store is None) != (self.disk_bytes is None):
            raise ValueError(
                f"LowerTiers: store and disk_bytes belong together, got store={self.store}, disk_bytes={self.disk_bytes}"
            )


class LayerPages(NamedTuple):
    """The pages of one layer: `[num_pages, page_size, num_kv_heads, dim]` each. The host's are there when a block table
    may name them: a host page's id is its number there plus the number of device pages."""

    k: Tensor
    v: Tensor
    k_host: Tensor | None = None
    v_host: Tensor | None = None


class LayerCaches(Mapping[int, LayerPages]):
    """What a model computes on, by layer. Asking for a layer waits until the pages that were promised are there in it."""

    def __init__(self, layers: Mapping[int, LayerPages], mover: Mover) -> None:
        self._layers, self._mover = layers, mover

    def __getitem__(self, layer: int) -> LayerPages:
        pages = self._layers[layer]
        self._mover.wait_for_layer(layer)
        return pages

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class KVCache(SequenceCache):
    """Pools, block tables and prefix cache for `groups`: at most one full group and any number of windowed ones.

    Args:
        groups: distinct names, disjoint layers.
        page_size: token slots per page, the same in all pools.
        num_pages: device pages of each group, by name.
        dtype, device: of the pools.
        fingerprint: names whatever decides the contents of K and V (weights, value scale, rotary settings). A cache with a
            store must have one, because the store outlives the model in this process and may serve others.
        enable_prefix_cache: False keeps nothing after a sequence has ended.
        policy: where window snapshots are taken.
        planner: chooses what to do with a hit. None: one that rebuilds no windows, because that takes a model that can.
        lower: the tiers below the device, or None.
        hash_key: a secret of 16 to 64 bytes that goes into the names of pages. Caches that share a store find each other's
            pages only with the same one. None: names that everybody can compute.

    Not thread-safe. `close` it, or use it in a `with` statement, when it has lower tiers.
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
        lower: LowerTiers | None = None,
        hash_key: bytes | None = None,
    ) -> None:
        check_groups(groups, num_pages)
        check_fingerprint("KVCache", fingerprint, above_store=lower is not None and lower.store is not None)
        check_secret("KVCache: hash_key", hash_key)
        if page_size < 1:
            raise ValueError(f"KVCache: page_size must be at least 1, got {page_size}")
        planner = planner or Planner(rebuild=False)
        self.memory = {g.name: DevicePages(g, page_size, num_pages[g.name], dtype, device) for g in groups}
        self.host_memory: dict[str, HostPages] = {}
        pools = [PagePool(g, page_size * g.bytes_per_token(dtype), num_pages[g.name]) for g in groups]
        shelves, mover = [Shelf(Tier.DEVICE, pools)], InstantMover()
        if lower is not None:
            check_groups(groups, lower.host_pages)
            pinned = torch.device(device).type == "cuda"
            self.host_memory = {
                g.name: HostPages(g, page_size, lower.host_pages[g.name], _below(g, dtype, lower.dtype), pinned=pinned)
                for g in groups
            }
            shelves += _lower_shelves(groups, lower, self.host_memory)
            memory = list(self.memory.values()), list(self.host_memory.values()), lower.store
            watch = planner.deadline, lambda rate, num_bytes, seconds: planner.rates[rate].observe(num_bytes, seconds)
            if pinned:
                mover = StreamMover(*memory, Streams.of(torch.device(device)), *watch)
            else:
                mover = ThreadMover(*memory, *watch)
        usable = lower is not None and lower.dtype in (None, dtype)
        try:
            super().__init__(
                groups,
                page_size,
                shelves,
                mover,
                dtype,
                fingerprint,
                enable_prefix_cache=enable_prefix_cache,
                policy=policy,
                planner=planner,
                write_policy=WritePolicy.THROUGH if lower is None else lower.write_policy,
                host_pages_usable=usable,
                lower_dtype=None if lower is None else lower.dtype,
                hash_key=hash_key,
            )
            self.layers = LayerCaches({n: self._layer(n, usable) for g in groups for n in g.layers}, self.mover)
        except BaseException:
            mover.close()  # nobody else has its thread
            raise

    def __enter__(self) -> "KVCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def store_layout(
        groups: Sequence[GroupSpec], page_size: int, dtype: torch.dtype, lower_dtype: torch.dtype | None = None
    ) -> tuple[bytes, tuple[int, ...]]:
        """A digest of how records look, for a store's `layout`, and their sizes in bytes, for its size classes."""
        sizes = tuple(host_page_bytes(g, page_size, _below(g, dtype, lower_dtype)) for g in groups)
        return layout_digest(groups, page_size, dtype, lower_dtype), sizes

    def layer(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """The K and V pages `[num_pages, page_size, num_kv_heads, dim]` of the model's layer `layer_idx`: views."""
        return self._layer(layer_idx, False)[:2]

    def _layer(self, layer_idx: int, with_host: bool) -> LayerPages:
        group = next(g for g in self.groups if layer_idx in g.layers)
        index = group.layers.index(layer_idx)
        host = self.host_memory[group.name].layer(index) if with_host else ()
        return LayerPages(*self.memory[group.name].layer(index), *host)

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
            sizes = [host_page_bytes(g, page_size, _below(g, dtype, lower_dtype if tier else None)) for g in groups]
            pools = [PagePool(g, size, None) for g, size in zip(groups, sizes, strict=True)]
            shelves.append(Shelf(Tier(tier), pools, budgets[tier]))
        mover = InstantMover()
        return SequenceCache(
            groups,
            page_size,
            shelves,
            mover,
            dtype,
            "",
            policy=policy,
            planner=planner,
            write_policy=write_policy,
            lower_dtype=lower_dtype,
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


def _below(group: GroupSpec, dtype: torch.dtype, lower_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a group's pages below the device."""
    return lower_dtype if lower_dtype is not None and group.window is None else dtype


def _lower_shelves(groups: Sequence[GroupSpec], lower: LowerTiers, memory: Mapping[str, HostPages]) -> list[Shelf]:
    sizes = [memory[g.name].bytes_per_page for g in groups]
    pools = [PagePool(g, size, lower.host_pages[g.name]) for g, size in zip(groups, sizes, strict=True)]
    shelves = [Shelf(Tier.HOST, pools)]
    if lower.store is not None:
        pools = [PagePool(g, size, None) for g, size in zip(groups, sizes, strict=True)]
        shelves.append(Shelf(Tier.DISK, pools, lower.disk_bytes))
    return shelves

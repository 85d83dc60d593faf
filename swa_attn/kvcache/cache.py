"""The KV cache of one device: a page pool per group, block tables per sequence, and the prefix tree over both.

Life of a sequence: `key` names its prompt, `can_admit` asks both pools, `begin` takes the cached prefix, then for every
step `extend` gets pages, the model writes them, and `commit` says that the step is complete; `end` gives everything
back. docs/kvcache.md has the picture.
"""

from collections.abc import Mapping, Sequence

import torch

from .hashing import chain_digests, namespace_digest, page_digest
from .pool import PageAccountingError, PagePool
from .prefix_tree import Match, Node, PrefixTree, SnapshotPages
from .sequence import ABSENT, KVSequence, PrefixKey
from .sizing import pages_for, working_set
from .spec import GroupSpec
from .stats import CacheStats, PoolStats

GHOST_NODES_PER_PAGE = 8  # without a full group: how much longer than its pages the tree remembers prefixes


class KVCache:
    """Pools, block tables and prefix cache for `groups`: at most one full group and any number of windowed ones.

    Args:
        groups: distinct names, disjoint layers.
        page_size: token slots per page, the same in all pools.
        num_pages: pages of each group, by name.
        dtype, device: of the pools.
        fingerprint: names whatever decides the contents of K and V (weights, value scale, rotary settings).
        enable_prefix_cache: False keeps nothing after a sequence has ended.
        snapshot_interval: additionally keep a window snapshot every so many tokens of a sequence.

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
        snapshot_interval: int | None = None,
    ) -> None:
        _check_groups(groups, num_pages)
        if snapshot_interval is not None and snapshot_interval < 1:
            raise ValueError(f"KVCache: snapshot_interval must be at least 1 or None, got {snapshot_interval}")
        self.groups = tuple(groups)
        self.page_size = page_size
        self.dtype = dtype
        self.fingerprint = fingerprint
        self.enable_prefix_cache = enable_prefix_cache
        self.snapshot_interval = snapshot_interval
        self.pools = {g.name: PagePool(g, page_size, num_pages[g.name], dtype, device) for g in groups}
        self._full = next((p for p in self.pools.values() if p.spec.window is None), None)
        # A window of one key needs nothing of the past, so its group is no part of a snapshot.
        self._snapshot_pools = tuple(p for p in self.pools.values() if p.spec.window is not None and p.spec.window > 1)
        ghosts = GHOST_NODES_PER_PAGE * max(num_pages.values())
        self.tree = PrefixTree(self._full, self._snapshot_pools, self._full.num_pages if self._full else ghosts)
        self._live: set[KVSequence] = set()
        self._oblivious_peak = 0
        self._num_lookups = self._looked_up = self._matched = self._hit = self._snapshot_misses = 0

    def key(self, tokens: Sequence[int], salt: str = "") -> PrefixKey:
        """Name the full pages of a prompt; `salt` separates tenants. Raises ValueError for an empty prompt."""
        if not tokens:
            raise ValueError("KVCache.key: tokens must hold at least one token, got none")
        namespace = namespace_digest(self.fingerprint, self.groups, self.page_size, self.dtype, salt)
        return PrefixKey(namespace, tuple(chain_digests(namespace, tokens, self.page_size)), len(tokens))

    def match(self, key: PrefixKey) -> Match:
        """The cached prefix of a prompt, always shorter than the prompt: its last token must be computed."""
        if not self.enable_prefix_cache:
            return Match((), 0)
        return self.tree.match(key.digests[: self._replay_page(key)])

    def fits(self, num_tokens: int) -> str | None:
        """Why a sequence of `num_tokens` tokens could not run even alone in the cache, or None."""
        for name, pool in self.pools.items():
            needed = working_set(pool.spec, num_tokens, self.page_size)
            if needed > pool.num_pages:
                return f"{num_tokens} tokens need {needed} pages of pool {name!r}, which has {pool.num_pages}"
        return None

    def can_admit(self, key: PrefixKey) -> bool:
        """Whether every pool has room for the whole prompt beside what the running sequences still need for theirs."""
        match = self.match(key)
        return all(self._has_room(pool, key, match) for pool in self.pools.values())

    def begin(self, key: PrefixKey) -> KVSequence:
        """Start a sequence on the cached prefix of its prompt; the prefix's pages stay until the sequence ends."""
        match = self.match(key)
        hit = match.num_safe * self.page_size
        matched = len(match.nodes) * self.page_size
        tables: dict[str, list[int]] = {}
        first_pages: dict[str, int] = {}
        for name, pool in self.pools.items():
            pages = self._matched_pages(pool, match)
            pool.retain(pages)
            first_pages[name] = match.num_safe - len(pages)
            tables[name] = [ABSENT] * first_pages[name] + pages
        if match.resume_node is not None:
            self.tree.pin(match.resume_node)
            if self._snapshot_pools:
                self.tree.touch_snapshot(match.resume_node)
        points = {self._replay_page(key) * self.page_size}
        if matched > hit:
            points.add(matched)  # others share the prefix up to here: make it resumable while passing through
        node = match.resume_node
        sequence = KVSequence(key, hit, tables, first_pages, node, node, frozenset(points), hit)
        sequence.digests.extend(key.digests[: match.num_safe])
        self._live.add(sequence)
        self._count_lookup(key, matched, hit)
        return sequence

    def extendable(self, sequence: KVSequence) -> int:
        """How many more tokens `sequence` can get pages for now, evicting whatever is only cached."""
        pages = min(len(sequence.block_tables[n]) + p.num_free + p.num_cached for n, p in self.pools.items())
        return pages * self.page_size - sequence.num_computed

    def extend(self, sequence: KVSequence, num_tokens: int) -> bool:
        """Get pages for the next `num_tokens` tokens in every pool, evicting if need be; False takes none."""
        self._check_live(sequence)
        if num_tokens > self.extendable(sequence):
            return False
        target = pages_for(sequence.num_computed + num_tokens, self.page_size)
        for name, pool in self.pools.items():
            table = sequence.block_tables[name]
            for page in table[sequence.num_computed // self.page_size :]:
                if pool.is_kept(page):
                    raise PageAccountingError(f"pool {name!r}: page {page} is cached and would be written")
            count = max(0, target - len(table))
            self._evict(pool, count - pool.num_free)
            table.extend(pool.allocate(count))
        self._oblivious_peak = max(self._oblivious_peak, self._oblivious_in_use())
        return True

    def commit(self, sequence: KVSequence, tokens: Sequence[int]) -> None:
        """The step that computed `tokens`, the next ones of `sequence`, is complete on the device.

        Finished pages enter the prefix tree, window snapshots are taken where wanted, and windowed pages that no later
        query sees are given back.
        """
        self._check_live(sequence)
        new_end = sequence.num_computed + len(tokens)
        if any(new_end > len(table) * self.page_size for table in sequence.block_tables.values()):
            raise ValueError(f"KVCache.commit: {len(tokens)} tokens end at {new_end}, beyond the pages from extend")
        sequence.num_computed = new_end
        if self.enable_prefix_cache:
            self._insert_finished_pages(sequence, tokens)
        resume_point = self._resume_point(sequence)
        for name, pool in self.pools.items():
            self._release_before(sequence, name, pool.spec.first_visible(resume_point) // self.page_size)

    def end(self, sequence: KVSequence) -> None:
        """Give the sequence's pages back; what the prefix tree names stays cached, with a snapshot at the end."""
        self._check_live(sequence)
        sequence.ended = True
        self._live.remove(sequence)
        if sequence.node is not None:
            self._store_snapshot(sequence, sequence.node, self._resume_point(sequence))
            self.tree.unpin(sequence.node)
        for name in self.pools:
            self._release_before(sequence, name, len(sequence.block_tables[name]))

    def stats(self) -> CacheStats:
        """Counts and occupancy as of now."""
        return CacheStats(
            pools={name: self._pool_stats(pool) for name, pool in self.pools.items()},
            num_lookups=self._num_lookups,
            looked_up_tokens=self._looked_up,
            matched_tokens=self._matched,
            hit_tokens=self._hit,
            snapshot_misses=self._snapshot_misses,
            num_snapshots=self.tree.num_snapshots,
            evicted_pages=self.tree.num_evicted_pages,
            evicted_snapshots=self.tree.num_evicted_snapshots,
        )

    def _replay_page(self, key: PrefixKey) -> int:
        """Pages that an identical prompt can reuse: all full ones before its last token."""
        return (key.num_tokens - 1) // self.page_size

    def _resume_point(self, sequence: KVSequence) -> int:
        """The last page boundary that the sequence has computed: where it can be resumed."""
        return sequence.num_computed // self.page_size * self.page_size

    def _matched_pages(self, pool: PagePool, match: Match) -> list[int]:
        """The pages of `pool` that a sequence resuming from `match` starts with, the last of its prefix."""
        if pool is self._full:
            return [node.page for node in match.nodes[: match.num_safe]]
        if pool in self._snapshot_pools and match.snapshot is not None:
            return list(match.snapshot[self._snapshot_pools.index(pool)])
        return []

    def _has_room(self, pool: PagePool, key: PrefixKey, match: Match) -> bool:
        matched = self._matched_pages(pool, match)
        promised = sum(
            max(0, working_set(pool.spec, s.key.num_tokens, self.page_size) - s.num_pages(pool.spec.name))
            for s in self._live
        )
        evictable = pool.num_cached - sum(not pool.is_in_use(page) for page in matched)
        needed = working_set(pool.spec, key.num_tokens, self.page_size) - len(matched)
        return needed + promised <= pool.num_free + evictable

    def _evict(self, pool: PagePool, count: int) -> None:
        if count > 0:
            if pool is self._full:
                self.tree.evict_full(count)
            else:
                self.tree.evict_windowed(pool, count)

    def _insert_finished_pages(self, sequence: KVSequence, tokens: Sequence[int]) -> None:
        sequence.tail.extend(tokens)
        node = sequence.node
        while len(sequence.tail) >= self.page_size:
            index = len(sequence.digests)
            sequence.digests.append(self._next_digest(sequence, sequence.tail[: self.page_size]))
            del sequence.tail[: self.page_size]
            node = self._insert_page(sequence, node, index)
            if self._wants_snapshot(sequence, (index + 1) * self.page_size):
                self._store_snapshot(sequence, node, (index + 1) * self.page_size)
        if node is not sequence.node:
            self.tree.pin(node)
            if sequence.node is not None:
                self.tree.unpin(sequence.node)
            sequence.node = node

    def _next_digest(self, sequence: KVSequence, page_tokens: Sequence[int]) -> bytes:
        index = len(sequence.digests)
        if index < len(sequence.key.digests):
            return sequence.key.digests[index]
        return page_digest(sequence.digests[-1] if sequence.digests else sequence.key.namespace, page_tokens)

    def _insert_page(self, sequence: KVSequence, parent: Node | None, index: int) -> Node:
        """Put a finished page into the tree; if another sequence has put an equal one there, use that one instead."""
        if self._full is None:
            return self.tree.insert(parent, sequence.digests[index], None)
        table = sequence.block_tables[self._full.spec.name]
        node = self.tree.insert(parent, sequence.digests[index], table[index])
        if node.page != table[index]:
            self._full.release((table[index],))
            self._full.retain((node.page,))
            table[index] = node.page
        return node

    def _wants_snapshot(self, sequence: KVSequence, position: int) -> bool:
        if position in sequence.snapshot_points:
            return True
        interval = self.snapshot_interval
        return interval is not None and position // interval > (position - self.page_size) // interval

    def _store_snapshot(self, sequence: KVSequence, node: Node, position: int) -> None:
        if not self._snapshot_pools:
            return
        self.tree.store_snapshot(node, self._snapshot_pages(sequence, position))
        if sequence.last_snapshot not in (None, node):
            self.tree.supersede_snapshot(sequence.last_snapshot)
        sequence.last_snapshot = node

    def _snapshot_pages(self, sequence: KVSequence, position: int) -> SnapshotPages:
        end = position // self.page_size
        return tuple(
            tuple(sequence.block_tables[p.spec.name][p.spec.first_visible(position) // self.page_size : end])
            for p in self._snapshot_pools
        )

    def _release_before(self, sequence: KVSequence, name: str, page: int) -> None:
        """Give back the sequence's pages of a group that come before logical page `page`."""
        first = sequence.first_pages[name]
        if page > first:
            table = sequence.block_tables[name]
            self.pools[name].release(table[first:page])
            table[first:page] = [ABSENT] * (page - first)
            sequence.first_pages[name] = page

    def _check_live(self, sequence: KVSequence) -> None:
        if sequence not in self._live:
            raise ValueError("KVCache: the sequence has ended, or another cache began it")

    def _count_lookup(self, key: PrefixKey, matched: int, hit: int) -> None:
        self._num_lookups += 1
        self._looked_up += key.num_tokens
        self._matched += matched
        self._hit += hit
        self._snapshot_misses += matched > hit

    def _oblivious_in_use(self) -> int:
        """Pages per group that the running sequences would use if windows freed nothing."""
        if self._full is not None:
            return self._full.num_in_use
        return sum(max(map(len, sequence.block_tables.values())) for sequence in self._live)

    def _pool_stats(self, pool: PagePool) -> PoolStats:
        return PoolStats(
            num_pages=pool.num_pages,
            bytes_per_page=pool.bytes_per_page,
            in_use=pool.num_in_use,
            cached=pool.num_cached,
            free=pool.num_free,
            peak_in_use=pool.peak_in_use,
            oblivious_in_use=self._oblivious_in_use(),
            oblivious_peak=self._oblivious_peak,
        )


def _check_groups(groups: Sequence[GroupSpec], num_pages: Mapping[str, int]) -> None:
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

"""What sequences hold: block tables, their own pages and shared ones, and giving them back."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from .intact import Intact
from .planner import Planner
from .pool import PageAccountingError, PagePool
from .prefix_cache import Match, PrefixCache, WritePolicy
from .secret_keys import check_secret
from .sequence import ABSENT, KVSequence, PrefixKey
from .shelf import Shelf
from .sizing import working_set
from .snapshot_policy import SnapshotPolicy
from .spec import GroupSpec
from .stats import Counters, PoolStats
from .tier import Tier
from .transfer import Mover

GHOST_PAGES_PER_PAGE = 8  # without a full group: how much longer than its pages the tree remembers prefixes


class SequencePages:
    """The ground floor of `SequenceCache`: which pages a sequence has, and what may be taken from it."""

    def __init__(
        self,
        groups: Sequence[GroupSpec],
        page_size: int,
        shelves: Sequence[Shelf],
        mover: Mover,
        dtype: torch.dtype,
        fingerprint: str,
        *,
        enable_prefix_cache: bool = True,
        policy: SnapshotPolicy | None = None,
        planner: Planner | None = None,
        write_policy: WritePolicy = WritePolicy.THROUGH,
        host_pages_usable: bool = False,
        lower_dtype: torch.dtype | None = None,
        hash_key: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.groups = tuple(groups)
        self.page_size = page_size
        self.dtype = dtype
        self.fingerprint = fingerprint
        self.lower_dtype = lower_dtype
        self._hash_key = check_secret("KVCache: hash_key", hash_key)
        self._epochs: dict[str, str] = {}  # by fingerprint: what `clear` appends to it
        self.enable_prefix_cache = enable_prefix_cache
        self.policy = policy or SnapshotPolicy()
        self.planner = planner or Planner()
        self.mover = mover
        self.shelves = tuple(shelves)
        self.pools = {g.name: pool for g, pool in zip(groups, shelves[0].pools, strict=True)}
        self._full = next((i for i, g in enumerate(groups) if g.window is None), None)
        # A window of one key needs nothing of the past, so its group is no part of a snapshot.
        snapshot_groups = [i for i, g in enumerate(groups) if g.window is not None and g.window > 1]
        ghosts = GHOST_PAGES_PER_PAGE * max(p.num_pages or 1 << 20 for p in self.pools.values())
        self._new_prefixes = partial(
            PrefixCache, self._full, snapshot_groups, page_size, shelves, mover, self.policy, write_policy, ghosts
        )
        self._memory_tiers = tuple(t for t in (Tier.DEVICE, Tier.HOST) if t < len(shelves))
        self._host_pages_usable = host_pages_usable
        self._clock = clock
        self._windows_by_layer = [w for _, w in sorted((layer, g.window) for g in groups for layer in g.layers)]
        self._oblivious_peak = 0
        self._whole = Intact("KVCache", "reset it, or close it")
        self._start(Counters(len(groups)))

    def _start(self, counters: Counters) -> None:
        """Know of nothing, with all pages free."""
        for shelf in self.shelves:
            for pool in shelf.pools:
                pool.reset()
        self.prefixes = self._new_prefixes(counters=counters)
        self._windows = self.prefixes.windows
        self._live: set[KVSequence] = set()
        self._loaded: list[KVSequence] = []  # whose loads have ended

    def match(self, key: PrefixKey) -> Match:
        """The cached prefix of a prompt, always shorter than the prompt: its last token must be computed."""
        limit = min(self._replay_page(key), len(key.digests)) if self.enable_prefix_cache else 0
        return self.prefixes.match(key.digests, limit)

    def _release_left_behind(self, sequence: KVSequence) -> None:
        """Windowed pages that neither the next query nor a snapshot at the current page boundary needs."""
        self._release_left_behind_but(sequence, self.policy.slack_pages if self.enable_prefix_cache else 0)

    def _give_up_slack(self) -> None:
        """Slack is kept while there is plenty of room: once sequences use half of a tier they keep their windows only."""
        shelf = self.shelves[0]
        if self.policy.slack_pages and any(
            2 * shelf.pools[g].num_in_use > (shelf.pools[g].num_pages or 1 << 60) for g, _ in self._windows.groups
        ):
            for sequence in self._live:
                if not sequence.is_loading and not sequence.needs_rebuild:
                    self._release_left_behind_but(sequence, 0)

    def _release_left_behind_but(self, sequence: KVSequence, slack_pages: int) -> None:
        boundary = self._resume_page(sequence) * self.page_size
        for i, group in enumerate(self.groups):
            if group.window is not None:
                slack = slack_pages if group.window > 1 else 0
                self._release_before(sequence, i, max(0, group.first_visible(boundary) // self.page_size - slack))

    def _release_before(self, sequence: KVSequence, group: int, page: int) -> None:
        """Give back the sequence's pages of a group that come before logical page `page`."""
        name = self.groups[group].name
        first = sequence.first_pages[name]
        if page <= first:
            return
        table = sequence.block_tables[name]
        if group == self._full:
            own = table[sequence.inserted : page]
        else:
            number = next((n for n, (g, _) in enumerate(self._windows.groups) if g == group), None)
            own = []
            for index in range(first, page):
                shared = sequence.windows.pop((number, index), None)
                if shared is None:
                    own.append(table[index])
                else:
                    self._windows.stop_use(shared, Tier.DEVICE)
        self.pools[name].let_go(len(own))
        self.pools[name].release(own)
        table[first:page] = [ABSENT] * (page - first)
        sequence.first_pages[name] = page

    def _unpin(self, sequence: KVSequence) -> None:
        if sequence.run is not None:
            self.prefixes.full.unpin(sequence.run, Tier.DEVICE)
        if sequence.host_run is not None:
            self.prefixes.full.unpin(sequence.host_run, Tier.HOST)

    def _used(self, sequence: KVSequence) -> None:
        """The path to the sequence's end counts as used now."""
        self.prefixes.full.touch(sequence.run)
        self.prefixes.write_down(sequence.run)

    def _is_inserted(self, sequence: KVSequence) -> bool:
        return sequence.host_run is None

    def _swap_in(self, sequence: KVSequence) -> None:
        """A prefix that is read on the host moves to the device once there is room: from then on it grows the tree."""
        run = sequence.host_run
        if run is None or self._full is None:
            return
        wanted = run.stop - self.prefixes.full.resident([*run.up()][::-1], run.stop, Tier.DEVICE)
        shelf = self.shelves[0]
        pool = shelf.pools[self._full]
        room = pool.num_free if pool.num_pages is not None else wanted
        if wanted > room or not self.prefixes.promote(run, run.stop):
            return
        name = self.groups[self._full].name
        table = sequence.block_tables[name]
        table[: run.stop] = self.prefixes.full.ids([*run.up()][::-1], 0, run.stop, Tier.DEVICE)
        self.prefixes.full.unpin(run, Tier.HOST)
        sequence.host_run = None

    def _allocate(self, sequence: KVSequence, counts: Sequence[int]) -> bool:
        shelf = self.shelves[0]
        taken: list[tuple[PagePool, list[int]]] = []
        for i, count in enumerate(counts):
            pool = shelf.pools[i]
            if not self.prefixes.make_room(Tier.DEVICE, i, count):
                for other, pages in taken:
                    other.let_go(len(pages))
                    other.release(pages)
                return False
            pages = pool.allocate(count)
            pool.hold(count)
            taken.append((pool, pages))
        for group, (_, pages) in zip(self.groups, taken, strict=True):
            sequence.block_tables[group.name].extend(pages)
        return True

    def _check_not_cached(self, sequence: KVSequence) -> None:
        """The page that is written next belongs to the sequence alone."""
        index = sequence.num_computed // self.page_size
        for i, name in enumerate(self.pools):
            table = sequence.block_tables[name]
            if index < len(table):
                number = next((n for n, (g, _) in enumerate(self._windows.groups) if g == i), None)
                cached = index < sequence.inserted if i == self._full else (number, index) in sequence.windows
                if cached:
                    raise PageAccountingError(f"pool {name!r}: page {table[index]} is cached and would be written")

    def _working_set(self, group: int, num_tokens: int) -> int:
        return working_set(self.groups[group], num_tokens, self.page_size)

    def _matched_pages(self, group: int, match: Match) -> tuple[int, int]:
        """Pages of a group that a sequence resuming from `match` would find on the device, and how many of them are only
        cached now."""
        if group == self._full:
            count = min(match.resume, match.tiers[0])
            return count, count - self._used_on_device(match, count)
        number = next((n for n, (g, _) in enumerate(self._windows.groups) if g == group), None)
        pages = match.windows[number] if number is not None and match.windows else []
        there = [p for p in pages if p.ids[0] is not None]
        return len(there), sum(not p.users[0] for p in there)

    @staticmethod
    def _used_on_device(match: Match, num_pages: int) -> int:
        """How many of the prefix's first `num_pages` full pages are on the device and in use."""
        return sum(
            min(len(run.pages[0]), num_pages - run.start) for run in match.path if run.pins[0] and run.start < num_pages
        )

    def _replay_page(self, key: PrefixKey) -> int:
        """Pages that an identical prompt can reuse: all full ones before its last token."""
        return (key.num_tokens - 1) // self.page_size

    def _resume_page(self, sequence: KVSequence) -> int:
        """The last page boundary that the sequence has computed: where it can be resumed."""
        return sequence.num_computed // self.page_size

    def _check_live(self, sequence: KVSequence) -> None:
        if sequence not in self._live:
            raise ValueError("KVCache: the sequence has ended, or another cache began it")

    def _count_lookup(self, key: PrefixKey, match: Match) -> None:
        c = self.prefixes.counters
        c.num_lookups += 1
        c.looked_up += key.num_tokens
        c.matched += match.num_pages * self.page_size
        if match.num_pages > match.resume:
            c.missed_snapshot((match.num_pages - match.resume) * self.page_size)

    def _count_hit(self, sequence: KVSequence, match: Match, resume: int, pages: Iterable | None) -> None:
        c, size = self.prefixes.counters, self.page_size
        c.hit += resume * size
        below = 0
        for tier, have in enumerate(sequence.found):
            upto = min(max(have, below), resume)
            c.hit_by_tier[tier] += (upto - below) * size
            if upto > below:
                sequence.hit_tokens_by_tier[Tier(tier)] = (upto - below) * size
            below = upto
        if self._full is not None:
            c.read[self._full] += resume * self.shelves[0].pools[self._full].bytes_per_page
        for group_pages in pages or []:
            for page in group_pages:
                group = self._windows.groups[page.group][0]
                c.read[group] += self.shelves[0].pools[group].bytes_per_page

    def _oblivious_in_use(self) -> int:
        """Pages per group that the running sequences would use if windows freed nothing."""
        if self._full is not None:
            return self.shelves[0].pools[self._full].num_in_use
        return sum(max(map(len, s.block_tables.values()), default=0) for s in self._live)

    def _pool_stats(self, pool: PagePool) -> PoolStats:
        return PoolStats(
            num_pages=pool.num_pages,
            bytes_per_page=pool.bytes_per_page,
            in_use=pool.num_in_use,
            cached=pool.num_cached,
            free=None if pool.num_pages is None else pool.num_free,
            peak_in_use=pool.peak_in_use,
            oblivious_in_use=self._oblivious_in_use(),
            oblivious_peak=self._oblivious_peak,
        )

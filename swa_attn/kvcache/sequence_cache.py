"""Sequences over the prefix cache: block tables, admission, and what is kept when and why.

Nothing here touches memory: pages are ids, and a `Mover` moves their contents.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from .hashing import chain_digests, namespace_digest, page_digest
from .planner import Action, Option, Planner, Situation
from .pool import PageAccountingError, PagePool
from .prefix_cache import Match, PrefixCache, WritePolicy
from .radix import Run, common_length
from .rebuild import plan_rebuild
from .sequence import ABSENT, KVSequence, PrefixKey
from .shelf import Shelf
from .sizing import pages_for, working_set
from .snapshot_policy import SnapshotPolicy
from .spec import GroupSpec
from .stats import GAP_BOUNDS, CacheStats, PoolStats
from .tier import Tier
from .transfer import Mover
from .window_pages import Reason, WindowPage

GHOST_PAGES_PER_PAGE = 8  # without a full group: how much longer than its pages the tree remembers prefixes


class SequenceCache:
    """Block tables and prefix cache for `groups`: at most one full group and any number of windowed ones.

    Life of a sequence: `key` names its prompt, `can_admit` asks all pools, `begin` takes the cached prefix (and `poll`
    says when what comes from the store is there), then for every step `extend` gets pages, the model writes them, and
    `commit` says that the step is complete; `end` gives everything back. docs/kvcache.md and docs/kv_tiers.md have the
    pictures.

    Args:
        groups: distinct names, disjoint layers.
        shelves: the pools of each tier, in the order of `groups`; the device's first.
        dtype, fingerprint: see `KVCache`.

    Not thread-safe.
    """

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.groups = tuple(groups)
        self.page_size = page_size
        self.dtype = dtype
        self.fingerprint = fingerprint
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
        self.prefixes = PrefixCache(
            self._full, snapshot_groups, page_size, shelves, mover, self.policy, write_policy, ghosts
        )
        self._windows = self.prefixes.windows
        self._memory_tiers = tuple(t for t in (Tier.DEVICE, Tier.HOST) if t < len(shelves))
        self._host_pages_usable = host_pages_usable
        self._clock = clock
        self._windows_by_layer = [w for _, w in sorted((layer, g.window) for g in groups for layer in g.layers)]
        self._live: set[KVSequence] = set()
        self._loaded: list[KVSequence] = []  # whose loads have ended
        self._oblivious_peak = 0

    # -- asking ---------------------------------------------------------------------------------------------------------

    def key(self, tokens: Sequence[int], salt: str = "") -> PrefixKey:
        """Name the full pages of a prompt; `salt` separates tenants. Raises ValueError for an empty prompt."""
        if not tokens:
            raise ValueError("KVCache.key: tokens must hold at least one token, got none")
        namespace = namespace_digest(self.fingerprint, self.groups, self.page_size, self.dtype, salt)
        return PrefixKey(namespace, tuple(chain_digests(namespace, tokens, self.page_size)), len(tokens))

    def match(self, key: PrefixKey) -> Match:
        """The cached prefix of a prompt, always shorter than the prompt: its last token must be computed."""
        limit = min(self._replay_page(key), len(key.digests)) if self.enable_prefix_cache else 0
        return self.prefixes.match(key.digests, limit)

    def fits(self, num_tokens: int) -> str | None:
        """Why a sequence of `num_tokens` tokens could not run even alone in the cache, or None."""
        needs = [self._working_set(i, num_tokens) for i in range(len(self.groups))]
        for (name, pool), needed in zip(self.pools.items(), needs, strict=True):
            if pool.num_pages is not None and needed > pool.num_pages:
                return f"{num_tokens} tokens need {needed} pages of pool {name!r}, which has {pool.num_pages}"
        needed = sum(n * p.bytes_per_page for n, p in zip(needs, self.pools.values(), strict=True))
        budget = self.shelves[0].budget_bytes
        if budget is not None and needed > budget:
            return f"{num_tokens} tokens need {needed} bytes of device memory, which has {budget}"
        return None

    def can_admit(self, key: PrefixKey) -> bool:
        """Whether every pool has room for the whole prompt beside what the running sequences still need for theirs."""
        self._give_up_slack()
        match = self.match(key)
        needs = []
        for i, pool in enumerate(self.pools.values()):
            matched, free_now = self._matched_pages(i, match)
            promised = sum(
                max(0, self._working_set(i, s.key.num_tokens) - s.num_pages(pool.spec.name)) for s in self._live
            )
            # Those of its own prefix that are only cached are not to be had by evicting.
            needs.append(self._working_set(i, key.num_tokens) - matched + promised + free_now)
        return self.shelves[0].fits(needs)

    def extendable(self, sequence: KVSequence) -> int:
        """How many more tokens `sequence` can get pages for now, evicting whatever is only cached."""
        if sequence.is_loading or sequence.needs_rebuild:
            return 0
        self._give_up_slack()
        shelf = self.shelves[0]
        pages = min(
            len(sequence.block_tables[g.name]) + shelf.most(i, 1 << 40 if pool.num_pages is None else pool.num_pages)
            for i, (g, pool) in enumerate(zip(self.groups, shelf.pools, strict=True))
        )
        return pages * self.page_size - sequence.num_computed

    def stats(self) -> CacheStats:
        """Counts and occupancy as of now."""
        c, names = self.prefixes.counters, [g.name for g in self.groups]
        tiers = [Tier(t) for t in range(len(self.shelves))]
        pools = {(t, n): p for t in tiers for n, p in zip(names, self.shelves[t].pools, strict=True)}
        return CacheStats(
            pools={name: self._pool_stats(pool) for name, pool in self.pools.items()},
            num_lookups=c.num_lookups,
            looked_up_tokens=c.looked_up,
            matched_tokens=c.matched,
            hit_tokens=c.hit,
            hit_tokens_by_tier={t: c.hit_by_tier[t] for t in tiers},
            snapshot_misses=c.snapshot_misses,
            gap_histogram=dict(zip((*GAP_BOUNDS, None), c.gaps, strict=True)),
            num_rebuilds=c.rebuilds,
            rebuild_token_equivalents=c.rebuild_tokens,
            read_bytes=dict(zip(names, c.read, strict=True)),
            written_bytes=dict(zip(names, c.written, strict=True)),
            moved_bytes={(s, t, names[g]): n for (s, t, g), n in sorted(c.moves.items())},
            resident_pages={where: pool.num_used for where, pool in pools.items()},
            resident_bytes={t: self.shelves[t].used_bytes for t in tiers},
            num_snapshots=self._windows.num_snapshots,
            evicted_pages=c.evicted_pages[0],
            evicted_snapshots=c.evicted_snapshots[0],
            evicted_by_tier={
                (t, kind): counts[t]
                for t in tiers
                for kind, counts in (("pages", c.evicted_pages), ("snapshots", c.evicted_snapshots))
            },
            lost_pages=c.lost_pages,
            stalls=c.stalls,
            late_loads=c.late_loads,
        )

    # -- beginning ------------------------------------------------------------------------------------------------------

    def begin(self, key: PrefixKey) -> KVSequence:
        """Start a sequence on the cached prefix of its prompt; the prefix's pages stay until the sequence ends.

        What the plan takes from the store is not there yet when the sequence `is_loading`: `poll` ends that.
        """
        sequence = KVSequence(key)
        match = self.match(key)
        if self.enable_prefix_cache and match.num_pages == match.tiers[-1]:
            limit = min(self._replay_page(key), len(key.digests))
            if self.prefixes.adopt(key.digests[:limit], match.num_pages, match.path):
                match = self.match(key)
        self._live.add(sequence)
        sequence.plan = self.planner.plan(self._situations(key, match))
        sequence.found = match.tiers
        self._count_lookup(key, match)
        sequence.deadline = self._clock() + self.planner.deadline
        if Action.LOAD in sequence.plan.chosen.actions:
            self._start_loading(sequence, match)
            self._settle_loads()
        else:
            self._attach(sequence, match, sequence.plan.chosen)
        return sequence

    def poll(self, timeout: float | None = 0.0) -> None:
        """Take note of transfers that have ended, and of deadlines that have passed.

        Waits up to `timeout` seconds for a transfer, if any is under way (None: as long as it takes).
        """
        self.mover.poll(timeout)
        self._settle_loads()
        now = self._clock()
        for sequence in [s for s in self._live if s.is_loading and s.deadline <= now]:
            self.prefixes.counters.late_loads += 1
            self._stop_loading(sequence)

    def rebuilt(self, sequence: KVSequence) -> None:
        """The model has recomputed the windows that `sequence.plan.rebuild` asks for."""
        self._check_live(sequence)
        if not sequence.needs_rebuild:
            raise ValueError("KVCache.rebuilt: the sequence's plan has no rebuild, or it is done")
        sequence.needs_rebuild = False
        end = sequence.num_computed // self.page_size
        if self.policy.branches:
            self._store_snapshot(sequence, end, Reason.BRANCH)
        self._release_left_behind_but(sequence, 0)  # what comes before the window is scratch: no slack

    # -- running --------------------------------------------------------------------------------------------------------

    def extend(self, sequence: KVSequence, num_tokens: int) -> bool:
        """Get pages for the next `num_tokens` tokens in every pool, evicting if need be; False takes none."""
        self._check_live(sequence)
        if sequence.is_loading or sequence.needs_rebuild:
            return False
        self._check_not_cached(sequence)
        self._give_up_slack()
        target = pages_for(sequence.num_computed + num_tokens, self.page_size)
        counts = [max(0, target - len(sequence.block_tables[g.name])) for g in self.groups]
        while not self.shelves[0].fits(counts):
            if not self.mover.num_pending:
                return False
            self.prefixes.counters.stalls += 1
            self.mover.poll(timeout=None)  # what transfers hold can be evicted when they have ended
        if not self._allocate(sequence, counts):
            return False
        self._oblivious_peak = max(self._oblivious_peak, self._oblivious_in_use())
        return True

    def commit(self, sequence: KVSequence, tokens: Sequence[int]) -> None:
        """The step that computed `tokens`, the next ones of `sequence`, is complete on the device.

        Finished pages enter the prefix tree, window snapshots are taken where wanted, and windowed pages that no later
        query sees are given back.
        """
        self._check_live(sequence)
        old_end = sequence.num_computed
        new_end = old_end + len(tokens)
        if any(new_end > len(table) * self.page_size for table in sequence.block_tables.values()):
            raise ValueError(f"KVCache.commit: {len(tokens)} tokens end at {new_end}, beyond the pages from extend")
        sequence.num_computed = new_end
        if self.enable_prefix_cache:
            self._name_pages(sequence, old_end, tokens)
            self._swap_in(sequence)
            self._keep_finished(sequence)
        self._release_left_behind(sequence)

    def end(self, sequence: KVSequence) -> None:
        """Give the sequence's pages back; what the prefix tree names stays cached, with a snapshot at the end."""
        self._check_live(sequence)
        if sequence.is_loading:
            self._release_loading(sequence)
        sequence.ended = True
        self._live.remove(sequence)
        if sequence.run is not None and self._is_inserted(sequence):
            if self.policy.output_end and not sequence.needs_rebuild:
                self._store_snapshot(sequence, self._resume_page(sequence), Reason.OUTPUT_END)
            self._used(sequence)
        for i, name in enumerate(self.pools):
            if sequence.block_tables:
                self._release_before(sequence, i, len(sequence.block_tables[name]))
        self._unpin(sequence)
        self.prefixes.bound_keys()

    @property
    def num_pending(self) -> int:
        """Transfers under way."""
        return self.mover.num_pending

    def close(self) -> None:
        """Ends transfers; the cache is not used after that. May be called twice."""
        self.mover.close()

    # -- planning -------------------------------------------------------------------------------------------------------

    def _situations(self, key: PrefixKey, match: Match, from_store: bool = True) -> list[Situation]:
        """The points where the prompt could be resumed, with what each would take."""
        found = []
        reach = max(match.tiers[: 3 if from_store else 2])
        for limit in dict.fromkeys((reach, *match.tiers[:2])):
            resume = self._resume_at(match, limit, from_store)
            found.append(self._situation(key, match, resume, None))
            if limit > resume and self._can_rebuild(match, limit):
                ends = limit * self.page_size, resume * self.page_size
                rebuild = plan_rebuild(self._windows_by_layer, *ends, self.page_size)
                found.append(self._situation(key, match, limit, (rebuild, resume)))
        found.append(self._situation(key, match, 0, None))
        unique = list(dict.fromkeys(s for s in found if s is not None))
        return unique or [Situation(0, key.num_tokens, 0, 0, 0, 0, 0)]

    def _resume_at(self, match: Match, limit: int, from_store: bool) -> int:
        """The longest prefix of at most `limit` pages with windows that may be used."""
        lowest = Tier.DISK if from_store else Tier.HOST
        for end in self._windows.resume_points(match.path, limit):
            pages = self._windows.pages_for(match.path, match.run_at(end), end) or []
            if all(_fastest(p) <= lowest for group in pages for p in group):
                return end
        return 0

    def _situation(self, key: PrefixKey, match: Match, resume: int, rebuild) -> Situation | None:
        """What resuming after `resume` pages takes; None when the device has no room for it."""
        device, host = (min(t, resume) for t in (*match.tiers, 0)[:2])
        host = max(device, host)
        needs = [0] * len(self.groups)
        num_bytes = [0, 0, 0]
        if self._full is not None:
            needs[self._full] = resume - self._used_on_device(match, resume)  # its own cached pages make no room for it
            for tier, count in ((Tier.HOST, host - device), (Tier.DISK, resume - host)):
                if count:
                    num_bytes[tier] += count * self.shelves[tier].pools[self._full].bytes_per_page
        windows_at = rebuild[1] if rebuild else resume
        if windows_at:
            for pages in self._windows.pages_for(match.path, match.run_at(windows_at), windows_at) or []:
                for page in pages:
                    tier, group = _fastest(page), self._windows.groups[page.group][0]
                    num_bytes[tier] += self.shelves[tier].pools[group].bytes_per_page
                    needs[group] += not page.users[Tier.DEVICE]
        if rebuild:
            for group, _ in self._windows.groups:
                needs[group] += (
                    pages_for(resume * self.page_size, self.page_size) - rebuild[0].first[0] // self.page_size
                )
        if not self.shelves[0].fits(needs):
            return None
        size = self.page_size
        return Situation(
            resume * size,
            key.num_tokens,
            device * size,
            (host - device) * size,
            (resume - host) * size,
            num_bytes[Tier.HOST],
            num_bytes[Tier.DISK],
            rebuild[0] if rebuild else None,
            self._host_pages_usable and rebuild is None,
        )

    def _can_rebuild(self, match: Match, limit: int) -> bool:
        return self.planner.rebuild and self._full is not None and bool(self._windows.groups) and limit > 0

    # -- loading --------------------------------------------------------------------------------------------------------

    def _start_loading(self, sequence: KVSequence, match: Match) -> None:
        """Read what the plan needs and only the store has; the sequence holds what is above until that has ended."""
        prefixes, full = self.prefixes, self.prefixes.full
        option = sequence.plan.chosen
        resume = option.resume // self.page_size
        windows_at = self._resume_at(match, resume, True)
        pages = self._windows.pages_for(match.path, match.run_at(windows_at), windows_at) if windows_at else None
        run = prefixes.end_at(match.path[-1], resume)
        sequence.is_loading, sequence.loads = True, 1
        if prefixes.is_loading(run):
            prefixes.after_load.append(lambda: self._load_ended(sequence))
            sequence.waits_for_another = True
            return
        if self._full is not None:
            for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK):
                full.pin(run, tier)
                sequence.release_loads.append(lambda tier=tier: full.unpin(run, tier))
        needed = [p for group in pages or [] for p in group]
        for page in needed:
            tier = _fastest(page)
            self._windows.use(page, tier)
            sequence.release_loads.append(lambda page=page, tier=tier: self._windows.stop_use(page, tier))
        ended = lambda: self._load_ended(sequence)  # noqa: E731
        host = full.resident([*run.up()][::-1], resume, Tier.HOST) if self._full is not None else resume
        device = full.resident([*run.up()][::-1], resume, Tier.DEVICE)
        if max(host, device) < resume:
            if device > host:
                prefixes.write_down(run)
                host = full.resident([*run.up()][::-1], resume, Tier.HOST)
            sequence.loads += 1
            if not prefixes.load(run, host, resume, ended):
                sequence.loads -= 1
        for page in needed:
            if _fastest(page) == Tier.DISK:
                sequence.loads += 1
                if not prefixes.load_window(page, ended):
                    sequence.loads -= 1
        self._load_ended(sequence)

    def _load_ended(self, sequence: KVSequence) -> None:
        sequence.loads -= 1
        if sequence.loads == 0 and sequence.is_loading:
            self._loaded.append(sequence)

    def _settle_loads(self) -> None:
        """Go on with sequences whose loads have ended. Not done when they end: that may be while room is made for others."""
        while self._loaded:
            sequence = self._loaded.pop()
            if sequence.ended or not sequence.is_loading:
                continue
            if sequence.waits_for_another:
                self._load_again(sequence)
            else:
                self._stop_loading(sequence)

    def _load_again(self, sequence: KVSequence) -> None:
        """What another sequence was reading has ended: see what there is now."""
        sequence.is_loading = sequence.waits_for_another = False
        match = self.match(sequence.key)
        sequence.plan = self.planner.plan(self._situations(sequence.key, match))
        if Action.LOAD in sequence.plan.chosen.actions:
            self._start_loading(sequence, match)
        else:
            self._attach(sequence, match, sequence.plan.chosen)

    def _stop_loading(self, sequence: KVSequence) -> None:
        """Go on with what has arrived."""
        match = self.match(sequence.key)
        sequence.plan = self.planner.plan(self._situations(sequence.key, match, from_store=False))
        self._attach(sequence, match, sequence.plan.chosen)
        self._release_loading(sequence)

    def _release_loading(self, sequence: KVSequence) -> None:
        sequence.is_loading = False
        for release in sequence.release_loads:
            release()
        sequence.release_loads.clear()

    # -- attaching ------------------------------------------------------------------------------------------------------

    def _attach(self, sequence: KVSequence, match: Match, option: Option) -> None:
        """Give the sequence its prefix: block tables, windows, and the points where snapshots are wanted."""
        resume = option.resume // self.page_size
        prefixes = self.prefixes
        rebuild = option.rebuild
        start = self._resume_at(match, resume, from_store=False)
        if rebuild is not None and rebuild.first[0] > start * self.page_size:
            start = 0  # the rebuild reaches back to nothing that is stored
        pages = self._windows.pages_for(match.path, match.run_at(start), start) if start else None
        run = prefixes.end_at(match.path[-1], resume) if resume else None
        with self._kept(run, pages or []):
            if run is not None:
                self._hold_prefix(sequence, run, resume, Action.IN_PLACE in option.actions)
            self._fill_tables(sequence, run, resume)
            for number, group_pages in enumerate(pages or []):
                self._take_windows(sequence, number, group_pages)
        sequence.hit_tokens = sequence.num_computed = resume * self.page_size
        sequence.inserted = resume
        sequence.digests = list(sequence.key.digests[:resume])
        sequence.points = self._points(sequence.key, match, sequence.hit_tokens)
        if rebuild is not None:
            self._prepare_rebuild(sequence, rebuild, start)
        if resume and pages:
            snapshot = pages[0][-1].snapshot
            if snapshot is not None:
                snapshot = snapshot.main or snapshot
                self._windows.touch(snapshot, prefixes.full.clock)
                if snapshot.reason in (Reason.PROMPT_END, Reason.OUTPUT_END):
                    sequence.last_end = snapshot
        self._count_hit(sequence, match, resume, pages)

    @contextmanager
    def _kept(self, run: Run | None, windows: Sequence[Sequence[WindowPage]]) -> Iterator[None]:
        """While room is made on the device for a prefix, no part of it is evicted from where it is now."""
        used = [(p, t) for pages in windows for p in pages for t in self._memory_tiers if p.ids[t] is not None]
        for page, tier in used:
            self._windows.use(page, tier)
        for tier in self._memory_tiers if run is not None else ():
            self.prefixes.full.pin(run, tier)
        yield
        for tier in self._memory_tiers if run is not None else ():
            self.prefixes.full.unpin(run, tier)
        for page, tier in used:
            self._windows.stop_use(page, tier)

    def _hold_prefix(self, sequence: KVSequence, run: Run, resume: int, in_place: bool) -> None:
        full = self.prefixes.full
        full.touch(run)
        for node in run.up():
            node.num_uses += 1
        sequence.run = run
        full.pin(run, Tier.DEVICE)
        if in_place:
            full.pin(run, Tier.HOST)
            sequence.host_run = run
            self.mover.wait_for_host()
        elif not self.prefixes.promote(run, resume):
            raise PageAccountingError("KVCache: the device had room for a prefix and then had not")
        self.prefixes.refresh(run)

    def _fill_tables(self, sequence: KVSequence, run: Run | None, resume: int) -> None:
        path = [*run.up()][::-1] if run is not None else []
        full = self.prefixes.full
        for i, group in enumerate(self.groups):
            name = group.name
            if i == self._full:
                device = full.resident(path, resume, Tier.DEVICE)
                table = full.ids(path, 0, device, Tier.DEVICE)
                if device < resume:
                    offset = self.pools[name].num_pages
                    table += [offset + page for page in full.ids(path, device, resume, Tier.HOST)]
                sequence.block_tables[name], sequence.first_pages[name] = table, 0
            else:
                sequence.block_tables[name] = [ABSENT] * resume
                sequence.first_pages[name] = resume

    def _take_windows(self, sequence: KVSequence, number: int, pages: Sequence[WindowPage]) -> None:
        """Use cached windowed pages as the sequence's own, copied to the device where they are not there."""
        name = self.groups[self._windows.groups[number][0]].name
        for page in pages:
            if page.ids[Tier.DEVICE] is not None:
                self._windows.use(page, Tier.DEVICE)
            elif not self.prefixes.promote_window(page):
                raise PageAccountingError("KVCache: the device had room for a window and then had not")
            if page.snapshot is not None and not page.snapshot.in_tier[Tier.DEVICE]:
                self._windows.enter(page.snapshot, Tier.DEVICE)
            sequence.windows[number, page.index] = page
            sequence.block_tables[name][page.index] = page.ids[Tier.DEVICE]
        if pages:
            sequence.first_pages[name] = pages[0].index

    def _prepare_rebuild(self, sequence: KVSequence, rebuild, start: int) -> None:
        """Pages of its own for the positions that the rebuild writes."""
        sequence.needs_rebuild = True
        end = rebuild.end // self.page_size
        first = max(start, rebuild.first[0] // self.page_size)
        for group, _ in self._windows.groups:
            table = sequence.block_tables[self.groups[group].name]
            if not self.prefixes.make_room(Tier.DEVICE, group, end - first):
                raise PageAccountingError("KVCache: the device had room for a rebuild and then had not")
            pool = self.shelves[0].pools[group]
            table[first:end] = pool.allocate(end - first)
            pool.hold(end - first)
            name = self.groups[group].name
            sequence.first_pages[name] = min(sequence.first_pages[name], first)
        counters = self.prefixes.counters
        counters.rebuilds += 1
        counters.rebuild_tokens += rebuild.token_equivalents

    def _points(self, key: PrefixKey, match: Match, hit: int) -> dict[int, Reason]:
        """Positions where this prompt wants a snapshot; the end of the prompt counts most."""
        points = dict(self.policy.within(hit, key.num_tokens, self.page_size))
        matched = match.num_pages * self.page_size
        if self.policy.branches and matched > hit:
            points[matched] = Reason.BRANCH  # others share the prefix up to here
        if self.policy.prompt_end:
            points[self._replay_page(key) * self.page_size] = Reason.PROMPT_END
        points.pop(0, None)
        return points

    # -- keeping --------------------------------------------------------------------------------------------------------

    def _name_pages(self, sequence: KVSequence, old_end: int, tokens: Sequence[int]) -> None:
        """Names of the pages that are finished now: the key's own, then digests of what was generated."""
        finished = sequence.num_computed // self.page_size
        names, given = sequence.digests, sequence.key.digests
        names.extend(given[len(names) : finished])
        tail_start = len(given) * self.page_size
        if sequence.num_computed > tail_start:
            sequence.tail.extend(tokens[max(0, tail_start - old_end) :])
        while len(names) < finished:
            start = (len(names) - len(given)) * self.page_size
            parent = names[-1] if names else sequence.key.namespace
            names.append(page_digest(parent, sequence.tail[start : start + self.page_size]))

    def _keep_finished(self, sequence: KVSequence) -> None:
        """Put finished pages into the tree, stopping on the way where a snapshot is wanted."""
        if sequence.host_run is not None:
            return
        finished, inserted = len(sequence.digests), sequence.inserted
        stops = [p // self.page_size for p in sequence.points if inserted < p // self.page_size <= finished]
        if self.policy.every is not None and sequence.num_computed > sequence.key.num_tokens:
            within = self.policy.within(inserted * self.page_size, finished * self.page_size, self.page_size)
            for end, reason in within:
                sequence.points.setdefault(end, reason)
                stops.append(end // self.page_size)
        for stop in sorted({*stops, finished}):
            if stop > inserted:
                self._insert(sequence, inserted, stop)
                inserted = stop
            reason = sequence.points.pop(stop * self.page_size, None)
            if reason is not None:
                self._store_snapshot(sequence, stop, reason)
        if sequence.run is not None:
            self.prefixes.write_down(sequence.run)

    def _insert(self, sequence: KVSequence, start: int, stop: int) -> None:
        """Pages `start .. stop - 1` of the sequence enter the tree, or give way to equal ones that are there already."""
        prefixes, full = self.prefixes, self.prefixes.full
        names = sequence.digests
        run = sequence.run or prefixes.tree.root
        at = start
        while at < stop:
            above = prefixes.end_at(run, at)
            child = above.children.get(names[at])
            if child is not None:
                count = common_length(child.keys, names, at, stop)
                run = prefixes.end_at(child, at + count)
                self._move_pin(sequence, run, count)
                self._exchange(sequence, run, at, at + count)
            else:
                count = stop - at
                grown = prefixes.tree.add(above, names[at:stop])
                full.known(grown)
                run = grown
                self._move_pin(sequence, run, count)
                self._hand_over(sequence, run, at, stop)
            at += count
        full.touch(run)
        sequence.inserted = stop

    def _move_pin(self, sequence: KVSequence, run: Run, count: int) -> None:
        """Hold the path to `run` instead of `count` full pages of the sequence's own."""
        if self._full is not None:
            self.shelves[0].pools[self._full].let_go(count)
        if run is not sequence.run:
            self.prefixes.full.pin(run, Tier.DEVICE)
            if sequence.run is not None:
                self.prefixes.full.unpin(sequence.run, Tier.DEVICE)
            sequence.run = run

    def _hand_over(self, sequence: KVSequence, run: Run, start: int, stop: int) -> None:
        """The tree owns the sequence's full pages `start .. stop - 1`, the next ones of `run` on the device."""
        if self._full is None:
            return
        pool = self.shelves[0].pools[self._full]
        self.prefixes.full.attach(run, Tier.DEVICE, sequence.block_tables[self.groups[self._full].name][start:stop])
        self.prefixes.counters.written[self._full] += (stop - start) * pool.bytes_per_page

    def _exchange(self, sequence: KVSequence, run: Run, start: int, stop: int) -> None:
        """Use the tree's pages `start .. stop - 1`, which end with `run`, and give the equal ones of the sequence back."""
        if self._full is None:
            return
        pool = self.shelves[0].pools[self._full]
        table = sequence.block_tables[self.groups[self._full].name]
        there = min(len(run.pages[Tier.DEVICE]), stop - run.start)
        kept = max(start, run.start + there)
        if kept > start:
            pool.release(table[start:kept])
            table[start:kept] = run.pages[Tier.DEVICE][start - run.start : kept - run.start]
        self.prefixes.full.attach(run, Tier.DEVICE, table[kept:stop])

    def _store_snapshot(self, sequence: KVSequence, end: int, reason: Reason) -> None:
        """Keep the windows before page boundary `end`, and the slack before them at the end of a turn."""
        if not self._windows.groups or end == 0 or not self.enable_prefix_cache or sequence.run is None:
            return
        is_end = reason in (Reason.PROMPT_END, Reason.OUTPUT_END)
        run = sequence.run.at(end - 1)
        names = [self.groups[group].name for group, _ in self._windows.groups]
        firsts = [self._windows.first_page(number, end) for number in range(len(names))]
        if any(sequence.first_pages[name] > first for name, first in zip(names, firsts, strict=True)):
            return  # they were left behind already
        pages = [[self._shared_page(sequence, n, run, i) for i in range(first, end)] for n, first in enumerate(firsts)]
        snapshot = self._windows.store(run, end, pages, reason)
        self._windows.touch(snapshot, self.prefixes.full.clock)
        if is_end:
            last = sequence.last_end
            if self.policy.demote_superseded and last is not None and last is not snapshot and any(last.in_tier):
                self._windows.supersede(last)
            sequence.last_end = snapshot
            slack = [
                [
                    self._shared_page(sequence, n, run, i)
                    for i in range(max(sequence.first_pages[name], first - self.policy.slack_pages), first)
                ]
                for n, (name, first) in enumerate(zip(names, firsts, strict=True))
            ]
            if any(slack):
                self._windows.store_slack(snapshot, slack)
                self.prefixes.keep_quota(Reason.SLACK, Tier.DEVICE)
        if self.prefixes.write_policy is not WritePolicy.BACK and len(self.shelves) > 1:
            self.prefixes.write_snapshot(snapshot, Tier.HOST)
            self.prefixes.write_on(snapshot)
        self.prefixes.keep_quota(reason, Tier.DEVICE)

    def _shared_page(self, sequence: KVSequence, number: int, run: Run, index: int) -> WindowPage:
        """The cache's page for the sequence's windowed page `index`, made from it if the cache has none on the device."""
        page = sequence.windows.get((number, index))
        if page is not None:
            return page
        page = self._windows.page(number, run, index)
        group = self._windows.groups[number][0]
        own = sequence.block_tables[self.groups[group].name][index]
        if page is None:
            page = self._windows.add_page(number, run, index, own)
            self.prefixes.counters.written[group] += self.shelves[0].pools[group].bytes_per_page
        elif page.ids[Tier.DEVICE] is None:
            page.ids[Tier.DEVICE] = own
            page.holders[Tier.DEVICE] += 1
            page.users[Tier.DEVICE] += 1
        else:
            return page
        sequence.windows[number, index] = page
        return page

    # -- giving back ----------------------------------------------------------------------------------------------------

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

    # -- small ----------------------------------------------------------------------------------------------------------

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


def _fastest(page: WindowPage) -> int:
    return next(t for t, page_id in enumerate(page.ids) if page_id is not None)

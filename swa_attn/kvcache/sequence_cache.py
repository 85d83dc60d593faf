"""Sequences over the prefix cache: block tables, admission, and what is kept when and why.

Nothing here touches memory: pages are ids, and a `Mover` moves their contents.
"""

import os
from collections.abc import Sequence

from .hashing import chain_digests, namespace_digest
from .planner import Action
from .resuming import Resuming
from .sequence import KVSequence, PrefixKey
from .sizing import pages_for
from .stats import GAP_BOUNDS, CacheStats
from .tier import Tier
from .window_pages import Reason


class SequenceCache(Resuming):
    """Block tables and prefix cache for `groups`: at most one full group and any number of windowed ones.

    Life of a sequence: `key` names its prompt, `can_admit` asks all pools, `begin` takes the cached prefix (and `poll`
    says when what comes from the store is there), then for every step `extend` gets pages, the model writes them, and
    `commit` says that the step is complete; `end` gives everything back. docs/kvcache.md and docs/kv_tiers.md have the
    pictures.

    Args:
        groups: distinct names, disjoint layers.
        shelves: the pools of each tier, in the order of `groups`; the device's first.
        dtype, fingerprint, hash_key: see `KVCache`.
        lower_dtype: of the full group's pages below the device, if that is another.

    Arguments are checked before anything changes, and wrong ones raise ValueError or TypeError. An exception that comes
    in the middle of a change, whatever it is, leaves the cache refusing further ones by name (`Torn`) until `reset`.

    Not thread-safe.
    """

    def key(self, tokens: Sequence[int], salt: str = "") -> PrefixKey:
        """Name the full pages of a prompt; `salt` separates tenants.

        A key is for now: after `clear` or `set_fingerprint` the same prompt has another one. Raises ValueError for an
        empty prompt, and TypeError for tokens that are no integers or a salt that is no str.
        """
        if not len(tokens):
            raise ValueError("KVCache.key: tokens must hold at least one token, got none")
        namespace = namespace_digest(
            self.fingerprint + self._epochs.get(self.fingerprint, ""),
            self.groups,
            self.page_size,
            self.dtype,
            salt,
            lower_dtype=self.lower_dtype,
            key=self._hash_key,
        )
        digests = chain_digests(namespace, tokens, self.page_size, self._hash_key)
        return PrefixKey(namespace, tuple(digests), len(tokens))

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
        with self._whole:
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
        """How many more tokens `sequence` can get pages for now, evicting whatever is only cached.

        Where groups share a byte budget this looks at each alone, and `extend` may give less.
        """
        if sequence.is_loading or sequence.needs_rebuild:
            return 0
        with self._whole:
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

    def begin(self, key: PrefixKey) -> KVSequence:
        """Start a sequence on the cached prefix of its prompt; the prefix's pages stay until the sequence ends.

        What the plan takes from the store is not there yet when the sequence `is_loading`: `poll` ends that.
        """
        if not isinstance(key, PrefixKey):
            raise TypeError(f"KVCache.begin: key must be a PrefixKey, got {type(key).__name__}")
        with self._whole:
            return self._begin(key)

    def _begin(self, key: PrefixKey) -> KVSequence:
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
        with self._whole:
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
        with self._whole:
            sequence.needs_rebuild = False
            end = sequence.num_computed // self.page_size
            if self.policy.branches:
                self._store_snapshot(sequence, end, Reason.BRANCH)
            self._release_left_behind_but(sequence, 0)  # what comes before the window is scratch: no slack

    def extend(self, sequence: KVSequence, num_tokens: int) -> bool:
        """Get pages for the next `num_tokens` tokens in every pool, evicting if need be; False takes none."""
        self._check_live(sequence)
        if num_tokens < 1:
            raise ValueError(f"KVCache.extend: num_tokens must be at least 1, got {num_tokens}")
        if sequence.is_loading or sequence.needs_rebuild:
            return False
        self._check_not_cached(sequence)
        with self._whole:
            return self._extend(sequence, num_tokens)

    def _extend(self, sequence: KVSequence, num_tokens: int) -> bool:
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
        if sequence.is_loading or sequence.needs_rebuild:
            raise ValueError("KVCache.commit: the sequence's prefix is not there yet, so nothing of it was computed")
        old_end = sequence.num_computed
        new_end = old_end + len(tokens)
        if any(new_end > len(table) * self.page_size for table in sequence.block_tables.values()):
            raise ValueError(f"KVCache.commit: {len(tokens)} tokens end at {new_end}, beyond the pages from extend")
        with self._whole:
            sequence.num_computed = new_end
            if self.enable_prefix_cache:
                self._name_pages(sequence, old_end, tokens)
                self._swap_in(sequence)
                self._keep_finished(sequence)
            self._release_left_behind(sequence)

    def end(self, sequence: KVSequence, *, keep: bool = True) -> None:
        """Give the sequence's pages back; what the prefix tree names stays cached, with a snapshot at the end.

        `keep=False` takes no snapshot and copies nothing down; what `commit` has kept stays until `forget`.
        """
        self._check_live(sequence)
        with self._whole:
            self._end(sequence, keep)

    def forget(self, key: PrefixKey, num_tokens: int) -> None:
        """Nothing of the prompt after its first `num_tokens` is found again, in any tier, nor what goes on from there.

        For contents that turned out wrong. Whole pages are forgotten. Sequences that use them go on. Another engine
        that has read them from a shared store before keeps them.
        """
        with self._whole:
            self.prefixes.hide(key.digests, num_tokens // self.page_size)

    def clear(self) -> None:
        """Forget everything, in all tiers. Counts of `stats` go on. Waits for transfers that are under way.

        Records that this cache knows of are deleted from the store. For those that it does not know of, written by others
        or in an earlier life, the names of all pages change: this cache does not find them any more, and nobody else finds
        what this cache writes from now on. `set_fingerprint` is for names that others are to share.

        Raises ValueError while sequences run, RuntimeError when a transfer does not end.
        """
        self._check_no_sequences("clear")
        with self._whole:
            self.mover.reset()
            for group, names in self.prefixes.stored_names():
                self.mover.discard(Tier.DISK, group, names)
            self._epochs[self.fingerprint] = f" cleared {os.urandom(16).hex()}"
            self._start(self.prefixes.counters)

    def set_fingerprint(self, fingerprint: str) -> None:
        """Contents are of another origin from now on: device and host are emptied, and records have other names.

        What the store holds under the old fingerprint stays there, for those who still use it. Raises and waits as `clear`,
        and raises TypeError and ValueError for what the constructor would not take.
        """
        check_fingerprint("KVCache.set_fingerprint", fingerprint, above_store=self.has_store)
        self._check_no_sequences("set_fingerprint")
        self.reset()
        self.fingerprint = fingerprint

    def reset(self) -> None:
        """Free all pages on the device and the host, whoever has them, and end all sequences; what the store holds is found
        again. Counts of `stats` go on.

        What makes a cache whole again that an exception has cut short. Waits for transfers that are under way, and raises
        RuntimeError when one does not end; then it may be called again.
        """
        self._whole.torn = True
        self.mover.reset()
        for sequence in self._live:
            sequence.ended = True
        self._start(self.prefixes.counters)
        self._whole.mend()

    def _check_no_sequences(self, method: str) -> None:
        self._whole.check()
        if self._live:
            raise ValueError(f"KVCache.{method}: {len(self._live)} sequences run; end them first")

    def _end(self, sequence: KVSequence, keep: bool) -> None:
        if sequence.is_loading:
            self._release_loading(sequence)
        sequence.ended = True
        self._live.remove(sequence)
        if keep and sequence.run is not None and self._is_inserted(sequence):
            if self.policy.output_end and not sequence.needs_rebuild:
                self._store_snapshot(sequence, self._resume_page(sequence), Reason.OUTPUT_END)
            self._used(sequence)
        for i, name in enumerate(self.pools):
            if sequence.block_tables:
                self._release_before(sequence, i, len(sequence.block_tables[name]))
        self._unpin(sequence)
        self.prefixes.bound_keys()

    @property
    def has_store(self) -> bool:
        """Whether there is a tier that outlives this cache."""
        return len(self.shelves) > Tier.DISK

    @property
    def is_torn(self) -> bool:
        """An exception has cut a change short: until `reset`, further ones raise Torn."""
        return self._whole.torn

    @property
    def num_pending(self) -> int:
        """Transfers under way."""
        return self.mover.num_pending

    def close(self) -> None:
        """Ends transfers; the cache is not used after that. May be called twice."""
        self.mover.close()


def check_fingerprint(where: str, fingerprint: str, *, above_store: bool) -> None:
    """Raises TypeError unless it is a str, and ValueError if it is empty above a store; `where` begins the message."""
    if not isinstance(fingerprint, str):
        raise TypeError(f"{where}: fingerprint must be a str, got {type(fingerprint).__name__}")
    if not fingerprint and above_store:
        raise ValueError(
            f"{where}: fingerprint must name the model above a store, or the KV of other weights would be served; got ''"
        )

"""What is kept of a sequence while it runs: finished pages, and windows at points where others may resume."""

from collections.abc import Sequence

from .hashing import page_digest
from .prefix_cache import WritePolicy
from .radix import Run, common_length
from .sequence import KVSequence
from .sequence_pages import SequencePages
from .tier import Tier
from .window_pages import Reason, WindowPage


class Keeping(SequencePages):
    """Puts finished pages into the prefix tree and takes snapshots."""

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
            names.append(page_digest(parent, sequence.tail[start : start + self.page_size], self._hash_key))

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

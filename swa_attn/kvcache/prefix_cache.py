"""What is kept of past sequences, in all tiers: finding it, making room, and moving it up and down."""

import os
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from .full_pages import FullPages
from .hashing import DIGEST_BYTES
from .pool import PagePool
from .radix import RadixTree, Run
from .shelf import Shelf
from .snapshot_policy import SnapshotPolicy
from .stats import Counters
from .tier import PageState, Tier
from .transfer import Mover, Transfer
from .window_pages import Reason, Snapshot, WindowPage
from .windows import Windows

ADOPTION_REACH = 64  # pages before the end of an adopted prefix where windows are looked for
ADOPTION_SECONDS = 0.25  # for how long, since every place is a question to the store and a step waits for the answers


class WritePolicy(Enum):
    """When pages are copied to the tiers below the device."""

    THROUGH = "through"  # as soon as they are finished
    SELECTIVE = "selective"  # once a second sequence has used them
    BACK = "back"  # when the tier above evicts them


@dataclass
class Match:
    """The known prefix of a chain of pages.

    `num_pages` of it are known; `tiers[t]` leading ones are in tier t. `resume` is the longest prefix whose full pages
    are somewhere and whose windows are too.
    """

    path: list[Run]
    num_pages: int
    tiers: tuple[int, ...]
    resume: int
    windows: list[list[WindowPage]] = field(default_factory=list)  # at `resume`, per snapshot group

    def run_at(self, num_pages: int) -> Run | None:
        """The run that holds the last of the first `num_pages`."""
        return self.path[-1].at(num_pages - 1) if num_pages else None


class PrefixCache:
    """The radix tree with full pages, windows, and the tiers' shelves.

    Args:
        full: number of the full group, or None.
        snapshot_groups: numbers of the windowed groups that look back at all.
        shelves: one per tier, the device's first; a tier below may be missing at the end.
        max_keys: pages to know of without a full group.
        counters: counts on.
    """

    def __init__(
        self,
        full: int | None,
        snapshot_groups: Sequence[int],
        page_size: int,
        shelves: Sequence[Shelf],
        mover: Mover,
        policy: SnapshotPolicy,
        write_policy: WritePolicy,
        max_keys: int,
        *,
        counters: Counters,
        refresh_seconds: float = 30.0,
    ) -> None:
        self.shelves = tuple(shelves)
        self.mover = mover
        self.policy = policy
        self.write_policy = write_policy
        self.tree = RadixTree()
        self.full = FullPages(self.tree, full, self.shelves)
        specs = self.shelves[0].pools
        self.windows = Windows(
            [(g, specs[g].spec) for g in snapshot_groups], page_size, self.shelves, policy.quotas, mover.discard
        )
        self.counters = counters
        self.after_load: list[Callable[[], None]] = []  # called once, when the next load has ended
        self._max_keys = max_keys
        self._refresh_seconds = refresh_seconds

    @property
    def bottom(self) -> int:
        """The lowest tier there is."""
        return len(self.shelves) - 1

    def match(self, keys: Sequence[Hashable], limit: int) -> Match:
        """The known prefix of a chain. Changes nothing."""
        path, known = self.tree.match(keys, limit)
        tiers = tuple(self.full.resident(path, known, t) for t in range(len(self.shelves)))
        known = max(tiers)
        while path and path[-1].start >= known:
            path.pop()
        resume = next(self.windows.resume_points(path, known), 0)
        match = Match(path, known, tiers, resume)
        if resume:
            match.windows = self.windows.pages_for(path, match.run_at(resume), resume) or []
        return match

    def state(self, keys: Sequence[Hashable], tier: Tier) -> PageState:
        """The state in `tier` of the full page that is the last of a chain."""
        path, known = self.tree.match(keys, len(keys))
        if known < len(keys):
            return PageState.ABSENT
        run, offset = path[-1], len(keys) - 1 - path[-1].start
        if offset >= len(run.pages[tier]):
            coming = any(len(keys) - 1 in pages for pages in run.coming[tier])
            return PageState.ARRIVING if coming else PageState.ABSENT
        return PageState.IN_USE if run.pins[tier] else PageState.RESIDENT

    def adopt(self, keys: Sequence[Hashable], match_pages: int, path: Sequence[Run]) -> int:
        """Learn pages after the first `match_pages` of a chain that the store holds and the tree does not know; returns
        how many. They are in the bottom tier from now on."""
        group, tier = self.full.group, self.bottom
        if group is None or tier != Tier.DISK:
            return 0
        held = self.full.resident(path, match_pages, tier)
        if held < match_pages:
            return 0
        count = self.mover.known(group, keys[match_pages:])
        count = self.shelves[tier].most(group, count)
        if count and self.make_room(tier, group, count):
            parent = self.end_at(path[-1], match_pages) if match_pages else self.tree.root
            names = keys[match_pages : match_pages + count]
            if names[0] not in parent.children:
                run = self.tree.add(parent, names)
                self.full.attach(run, tier, self.shelves[tier].pools[group].allocate(count))
                self.full.pin(run, tier)
                self._adopt_windows(keys, run, match_pages, match_pages + count)
                self.full.unpin(run, tier)
                return count
        return 0

    def _adopt_windows(self, keys: Sequence[Hashable], run: Run, start: int, stop: int) -> None:
        """Look for the last windows that the store holds in the pages that were just adopted."""
        until = time.monotonic() + ADOPTION_SECONDS
        for end in range(stop, max(start, stop - ADOPTION_REACH), -1):
            firsts = [(group, self.windows.first_page(n, end)) for n, (group, _) in enumerate(self.windows.groups)]
            if firsts and all(self.mover.known(group, keys[first:end]) == end - first for group, first in firsts):
                room = all(self.make_room(Tier.DISK, group, end - first) for group, first in firsts)
                if (
                    room
                    and self.shelves[Tier.DISK].bytes_short(
                        sum((end - first) * self.shelves[Tier.DISK].pools[g].bytes_per_page for g, first in firsts)
                    )
                    == 0
                ):
                    self.windows.adopt(run, end, Tier.DISK)
                return
            if time.monotonic() > until:
                return

    def end_at(self, run: Run, num_pages: int) -> Run:
        """The run whose end is after `num_pages` pages, on the way to `run`, made by a split if need be; the root for 0."""
        if num_pages == 0:
            return self.tree.root
        node = run.at(num_pages - 1)
        return node if node.stop == num_pages else self.full.split(node, num_pages)

    def make_room(self, tier: int, group: int, count: int) -> bool:
        """Evict from `tier` until `count` pages of `group` can be allocated; False when that cannot be."""
        shelf = self.shelves[tier]
        while (short := shelf.pages_short(group, count)) > 0:
            if not self._evict_group(tier, group, short) and not self._wait_for_victim(tier):
                return False
        num_bytes = count * shelf.pools[group].bytes_per_page
        while (short := shelf.bytes_short(num_bytes)) > 0:
            if not self._evict_oldest(tier, short) and not self._wait_for_victim(tier):
                return False
        return True

    def bound_keys(self) -> None:
        """Without a full group: forget the longest unused prefixes that are more than may be known."""
        while self.full.group is None and self.tree.num_keys > self._max_keys:
            run = self.full.victim(Tier.DEVICE)
            if run is None:
                return
            self._cut(run, max(run.start, run.stop - (self.tree.num_keys - self._max_keys)))

    def _wait_for_victim(self, tier: int) -> bool:
        """Nothing can be evicted, but a transfer that ends may make something evictable."""
        if self.mover.num_pending == 0:
            return False
        self.counters.stalls += 1
        return self.mover.poll(timeout=None)

    def _evict_group(self, tier: int, group: int, count: int) -> bool:
        if group == self.full.group:
            run = self.full.victim(tier)
            return run is not None and self._evict_pages(run, tier, count)
        number = next((i for i, (g, _) in enumerate(self.windows.groups) if g == group), None)
        snapshot = None if number is None else self.windows.victim(tier, number)
        return snapshot is not None and self._evict_snapshot(snapshot, tier)

    def _evict_oldest(self, tier: int, num_bytes: int) -> bool:
        """Free up to `num_bytes` of what is to go first, a superseded snapshot or whatever is the longest unused."""
        snapshot = self.windows.victim(tier)
        run = self.full.victim(tier) if self.full.group is not None else None
        if snapshot is not None and (
            run is None
            or snapshot.last_used < run.last_used
            or self.windows.over_quota(snapshot.reason, tier) is not None
        ):
            return self._evict_snapshot(snapshot, tier)
        if run is None:
            return False
        return self._evict_pages(run, tier, -(-num_bytes // self.full.pool(tier).bytes_per_page))

    def _evict_pages(self, run: Run, tier: int, count: int) -> bool:
        if self._writes_back(tier) and self._write_path(run, tier):
            return True  # it goes when the copies are done, and counts as in use until then
        names = self.full.evict(run, tier, count)
        self.counters.evicted_pages[tier] += len(names)
        self.mover.discard(Tier(tier), self.full.group, names)
        self._prune(run)
        return True

    def _evict_snapshot(self, snapshot: Snapshot, tier: int) -> bool:
        """Slack is written down only here: mostly the next turn comes first, and what it supersedes needs no slack."""
        is_slack = snapshot.reason is Reason.SLACK
        if is_slack or (self._writes_back(tier) and snapshot.reason is not Reason.SUPERSEDED):
            self.write_snapshot(snapshot, tier + 1)
        if snapshot.in_tier[tier]:  # making room below may have dropped it
            self.windows.drop(snapshot, tier)
            self.counters.evicted_snapshots[tier] += not is_slack
        return True

    def _writes_back(self, tier: int) -> bool:
        return self.write_policy is WritePolicy.BACK and tier < self.bottom

    def _prune(self, run: Run) -> None:
        """Forget the end of a run that is in no tier."""
        longest = _known_length(run)
        while longest < len(run.keys) and not run.children:
            parent = run.parent
            self._cut(run, run.start + longest)
            if longest or parent is self.tree.root:
                return
            run = parent
            longest = _known_length(run)

    def _cut(self, run: Run, index: int) -> None:
        self.windows.forget(run, index)
        self.tree.cut(run, index)
        if not run.keys:
            for order in self.full.order:
                order.pop(run, None)

    def hide(self, keys: Sequence[Hashable], start: int) -> None:
        """Nothing of a chain after its first `start` pages is found again in any tier, nor anything that goes on from it.

        What nobody holds is freed. The rest has names that nobody will ask for, until it is evicted.
        """
        path, known = self.tree.match(keys, len(keys))
        if known <= start:
            return
        top = self.end_at(path[-1], start).children[keys[start]]
        hidden = self._rename(top)
        for node in reversed(hidden):
            self._free(node)

    def stored_names(self) -> Iterator[tuple[int, list[Hashable]]]:
        """Groups, and names of their pages that are in the store or on the way there."""
        waiting = [self.tree.root]
        for node in waiting:
            waiting.extend(node.children.values())
            if self.full.group is not None:
                yield self.full.group, node.keys[: node.reach(Tier.DISK)]
            for page in node.windows.values():
                if page.ids[Tier.DISK] is not None or page.is_coming:
                    yield self.windows.groups[page.group][0], [page.key]

    def _rename(self, top: Run) -> list[Run]:
        """New names for all pages from `top` on, and the old ones deleted below; returns the runs, `top` first."""
        runs = [top]
        for node in runs:
            runs.extend(node.children.values())
            if self.full.group is not None:
                self.mover.discard(Tier.DISK, self.full.group, node.keys[: len(node.pages[Tier.DISK])])
            del node.parent.children[node.keys[0]]
            node.keys = [os.urandom(DIGEST_BYTES) for _ in node.keys]
            node.parent.children[node.keys[0]] = node
            for page in node.windows.values():
                if page.ids[Tier.DISK] is not None:
                    self.mover.discard(Tier.DISK, self.windows.groups[page.group][0], [page.key])
                page.key = node.keys[page.index - node.start]
        return runs

    def _free(self, node: Run) -> None:
        """Give back what nobody holds of a run, after all that follows it."""
        for snapshot in list(node.snapshots.values()):
            self.windows.drop_everywhere(snapshot)
        if self.full.group is None:
            if not node.children and not node.pins[Tier.DEVICE]:
                self._cut(node, node.start)
            return
        for tier, pins in enumerate(node.pins[: len(self.shelves)]):
            if not pins and node.pages[tier]:
                self.full.evict(node, tier, len(node.pages[tier]))
        self._prune(node)

    def promote(self, run: Run, num_pages: int) -> bool:
        """Copy from the host whatever of the path's first `num_pages` full pages is not on the device."""
        if self.full.group is None:
            return True
        for node in [*run.up()][::-1]:
            have, wanted = len(node.pages[Tier.DEVICE]), min(len(node.keys), num_pages - node.start)
            if have < wanted and not self._promote_part(run, node, have, wanted):
                return False
        return True

    def _promote_part(self, run: Run, node: Run, have: int, wanted: int) -> bool:
        group = self.full.group
        self.full.pin(node, Tier.HOST)
        self.full.pin(run, Tier.DEVICE)

        def done(_: int) -> None:
            self.full.unpin(run, Tier.DEVICE)
            self.full.unpin(node, Tier.HOST)

        fits = self.make_room(Tier.DEVICE, group, wanted - have)
        if fits:
            ids = self.full.pool(Tier.DEVICE).allocate(wanted - have)
            source, names = node.pages[Tier.HOST][have:wanted], node.keys[have:wanted]
            self.full.attach(node, Tier.DEVICE, ids)
            self._submit(group, Tier.HOST, Tier.DEVICE, source, ids, names, done)
        else:
            done(0)
        return fits

    def promote_window(self, page: WindowPage) -> bool:
        """Copy a windowed page from the host to the device, where the caller uses it from now on; False without room."""
        group = self.windows.groups[page.group][0]
        self.windows.use(page, Tier.HOST)
        fits = self.make_room(Tier.DEVICE, group, 1)
        if fits:
            page.ids[Tier.DEVICE] = self.shelves[Tier.DEVICE].pools[group].allocate(1)[0]
            self.windows.use(page, Tier.DEVICE)  # the caller's, first: the copy may end at once
            self.windows.use(page, Tier.DEVICE)

            def done(_: int) -> None:
                self.windows.stop_use(page, Tier.DEVICE)
                self.windows.stop_use(page, Tier.HOST)

            source, target = [page.ids[Tier.HOST]], [page.ids[Tier.DEVICE]]
            self._submit(group, Tier.HOST, Tier.DEVICE, source, target, [page.key], done)
        else:
            self.windows.stop_use(page, Tier.HOST)
        return fits

    def load(self, run: Run, start: int, stop: int, ended) -> bool:
        """Read full pages `start .. stop - 1` of the path to `run` from the store into the host, which has those before.

        `ended()` is called when they are there or have turned out not to be. The caller holds the path in both tiers.
        False, and no call, when the host has no room.
        """
        group = self.full.group
        pool = self.full.pool(Tier.HOST)
        count = self.shelves[Tier.HOST].most(group, stop - start)
        if count < 1 or not self.make_room(Tier.HOST, group, count):
            return False
        ids = pool.allocate(count)
        pool.hold(count)
        stop = start + count
        path = [node for node in run.up() if node.start < stop and node.stop > start][::-1]
        names = self.full.names(run, start, stop)
        source = self.full.ids(path, start, stop, Tier.DISK)
        for node in path:
            node.coming[Tier.HOST].append(range(max(node.start, start), min(node.stop, stop)))
        self.full.pin(run, Tier.HOST)  # what is coming must keep its place
        self.full.pin(run, Tier.DISK)

        def done(arrived: int) -> None:
            pool.let_go(count)
            self.full.attach_range(run, Tier.HOST, start, ids, arrived)
            self.full.unpin(run, Tier.HOST)
            self.full.unpin(run, Tier.DISK)
            if arrived < count:
                self._lost(run, start + arrived)
            self._prune(run)
            ended()
            waiting, self.after_load = self.after_load, []
            for call in waiting:
                call()

        self._submit(group, Tier.DISK, Tier.HOST, source, ids, names, done)
        return True

    def is_loading(self, run: Run) -> bool:
        """Whether pages of the path are on the way from the store."""
        return any(node.coming[Tier.HOST] for node in run.up())

    def load_window(self, page: WindowPage, ended) -> bool:
        """As `load`, for a windowed page that is on disk only."""
        group = self.windows.groups[page.group][0]
        pool = self.shelves[Tier.HOST].pools[group]
        self.windows.use(page, Tier.DISK)
        if not self.make_room(Tier.HOST, group, 1):
            self.windows.stop_use(page, Tier.DISK)
            return False
        page_id = pool.allocate(1)[0]
        pool.hold(1)
        page.holders[Tier.HOST] += 1

        def done(arrived: int) -> None:
            pool.let_go(1)
            if arrived:
                self.windows.place(page, Tier.HOST, page_id)
                if page.snapshot is not None and not page.snapshot.in_tier[Tier.HOST]:
                    self.windows.enter(page.snapshot, Tier.HOST)
            else:
                pool.release((page_id,))
                self._lost_window(page)
            self.windows._drop_holder(page, Tier.HOST)
            self.windows.stop_use(page, Tier.DISK)
            ended()

        self._submit(group, Tier.DISK, Tier.HOST, [page.ids[Tier.DISK]], [page_id], [page.key], done)
        return True

    def _lost(self, run: Run, index: int) -> None:
        """The store no longer has page `index` of the path: what follows cannot be used from there either."""
        self.counters.lost_pages += 1
        for node in run.up():
            if node.stop > index:
                self._forget_on_disk(node, max(0, index - node.start))

    def _forget_on_disk(self, node: Run, keep: int) -> None:
        """`node` and all that follows it are not in the store from its page number `keep` on."""
        for child in list(node.children.values()):
            if child.pages[Tier.DISK]:
                self._forget_on_disk(child, 0)
        pages = node.pages[Tier.DISK]
        if len(pages) > keep and not node.coming[Tier.DISK]:
            if node.pins[Tier.DISK]:
                self.full.pool(Tier.DISK).let_go(len(pages) - keep)
            names = self.full.evict(node, Tier.DISK, len(pages) - keep)
            self.mover.discard(Tier.DISK, self.full.group, names)
            self._prune(node)

    def _lost_window(self, page: WindowPage) -> None:
        self.counters.lost_pages += 1
        if page.snapshot is not None and page.snapshot.in_tier[Tier.DISK]:
            self.windows.drop(page.snapshot, Tier.DISK)

    def write_down(self, run: Run) -> None:
        """Copy what the tiers below lack of a prefix: what was just finished, and what they lost or never had."""
        if self.full.group is None or run is self.tree.root:
            return
        for tier in range(1, len(self.shelves)):
            for node in [*run.up()][::-1]:
                if not self._write_part(node, tier - 1, tier):
                    break

    def refresh(self, run: Run) -> None:
        """Tell a shared store, now and then, that a prefix is in use although nobody reads it there."""
        if self.full.group is None or self.bottom != Tier.DISK:
            return
        now = time.monotonic()
        for node in run.up():
            if node.pages[Tier.DISK] and now - node.refreshed > self._refresh_seconds:
                node.refreshed = now
                self.mover.refresh(self.full.group, node.keys[: len(node.pages[Tier.DISK])])
                for page in node.windows.values():
                    if page.ids[Tier.DISK] is not None:
                        self.mover.refresh(self.windows.groups[page.group][0], [page.key])

    def write_snapshot(self, snapshot: Snapshot, target: int) -> None:
        """Copy a snapshot from the tier above `target` to it, as far as it is not there yet."""
        source = target - 1
        if target > self.bottom or not snapshot.in_tier[source]:
            return
        missing = [p for p in snapshot if p.ids[target] is None and not p.is_coming and p.ids[source] is not None]
        if snapshot.in_tier[target] and not missing:
            return
        needs = [0] * len(self.shelves[target].pools)
        for page in missing:
            needs[self.windows.groups[page.group][0]] += 1
            self.windows.use(page, source)
        room = self.shelves[target].fits(needs)
        for group, count in enumerate(needs):
            room = room and self._room_beside(target, group, needs, count)
        # Making room may have waited for transfers, and what has ended since may have changed all of this.
        if room and snapshot.in_tier[source]:
            if not snapshot.in_tier[target]:
                self.windows.enter(snapshot, target)
            for page in missing:
                if page.ids[target] is None and not page.is_coming:
                    self._write_window(page, snapshot, source, target)
            self.keep_quota(snapshot.reason, target)
        for page in missing:
            self.windows.stop_use(page, source)

    def keep_quota(self, reason: Reason, tier: int) -> None:
        """Drop the longest unused snapshots of a reason that has more than its share of `tier`."""
        while (old := self.windows.over_quota(reason, tier)) is not None:
            self._evict_snapshot(old, tier)

    def _room_beside(self, tier: int, group: int, needs: Sequence[int], count: int) -> bool:
        """Room for `count` pages of `group` beside those of the groups before it, which are not allocated yet."""
        pools = self.shelves[tier].pools
        before = sum(n * p.bytes_per_page for n, p in zip(needs[:group], pools[:group], strict=True))
        extra = -(-before // pools[group].bytes_per_page) if pools[group].num_pages is None else 0
        return count == 0 or self.make_room(tier, group, count + extra)

    def _write_window(self, page: WindowPage, snapshot: Snapshot, source: int, target: int) -> None:
        group = self.windows.groups[page.group][0]
        page_id = self.shelves[target].pools[group].allocate(1)[0]
        self.windows.use(page, source)
        if target == Tier.HOST:
            page.ids[target] = page_id
            self.windows.use(page, target)  # the copy must not land in what is another page by then

            def done(arrived: int) -> None:
                self.windows.stop_use(page, source)
                self.windows.stop_use(page, target)
                through = self.write_policy is not WritePolicy.BACK and snapshot.reason is not Reason.SLACK
                if through and snapshot.in_tier[Tier.HOST]:
                    self.write_on(snapshot)
        else:
            page.is_coming = True
            name = page.key

            def done(arrived: int) -> None:
                page.is_coming = False
                if arrived:
                    self._discard_renamed(group, [name], [page.key])
                    self.windows.place(page, target, page_id)
                else:
                    self.shelves[target].pools[group].release((page_id,))
                    if snapshot.in_tier[target]:
                        self.windows.drop(snapshot, target)
                self.windows.stop_use(page, source)

        self._submit(group, Tier(source), Tier(target), [page.ids[source]], [page_id], [page.key], done)

    def write_on(self, snapshot: Snapshot) -> None:
        """A snapshot that has reached the host goes on to the store."""
        if self.bottom == Tier.DISK and all(p.ids[Tier.HOST] is not None for p in snapshot):
            self.write_snapshot(snapshot, Tier.DISK)

    def _write_part(self, node: Run, source: int, target: int) -> bool:
        """Copy what `target` lacks of a run; False when it then still lacks something."""
        if self.write_policy is WritePolicy.BACK or (
            self.write_policy is WritePolicy.SELECTIVE and node.num_uses < 2 and target == Tier.HOST
        ):
            return False
        self._write_run(node, source)
        return node.reach(target) == len(node.keys)

    def _write_path(self, run: Run, source: int) -> bool:
        """`_write_run` for all of a path, beginning first: an end has no place below without its beginning."""
        started = False
        for node in [*run.up()][::-1]:
            started = self._write_run(node, source) or started
        return started

    def _write_run(self, node: Run, source: int) -> bool:
        """Start copying the pages of a run that the tier below `source` lacks; False when there are none or no room."""
        target = source + 1
        have = node.reach(target)
        wanted = len(node.pages[source])
        if have >= wanted or not self._continues(node, target):
            return False
        group = self.full.group
        self.full.pin(node, source)
        self.full.pin(node, target)
        count = self.shelves[target].most(group, wanted - have)
        if count < 1 or not self.make_room(target, group, count):
            self.full.unpin(node, target)
            self.full.unpin(node, source)
            return False
        ids = self.full.pool(target).allocate(count)
        start = node.start + have
        if target == Tier.HOST:
            self.full.attach(node, target, ids)
        else:
            node.coming[target].append(range(start, start + count))
            self.full.pool(target).hold(count)

        def done(arrived: int) -> None:
            if target == Tier.DISK:
                self.full.pool(target).let_go(count)
                self._discard_renamed(group, names[:arrived], self.full.names(node, start, start + arrived))
                left_over = self.full.attach_range(node, target, start, ids, arrived)
                self.mover.discard(Tier.DISK, group, left_over)
            self.full.unpin(node, target)
            self.full.unpin(node, source)
            self._prune(node)

        names = node.keys[have : have + count]
        self._submit(group, Tier(source), Tier(target), node.pages[source][have : have + count], ids, names, done)
        return True

    def _continues(self, node: Run, target: int) -> bool:
        """Whether pages written to `target` now come right after those that it has of the prefix.

        The store's pages are counted when they have been written, in order; the host's at once, so there loads that are
        still coming must have ended first.
        """
        parent = node.parent
        if target == Tier.HOST and (node.coming[target] or parent.coming[target]):
            return False
        return parent is self.tree.root or parent.reach(target) == len(parent.keys)

    def _discard_renamed(self, group: int, written: Sequence[Hashable], names: Sequence[Hashable]) -> None:
        """What the store has taken under names that its pages have lost meanwhile must not be found there."""
        self.mover.discard(Tier.DISK, group, [old for old, now in zip(written, names, strict=True) if old != now])

    def _submit(self, group, source, target, source_ids, target_ids, keys, done) -> None:
        pool: PagePool = self.shelves[target].pools[group]
        self.counters.moved(source, target, group, len(keys) * pool.bytes_per_page)
        self.mover.submit(Transfer(group, source, target, source_ids, target_ids, keys, done))


def _known_length(run: Run) -> int:
    """Pages of the run that are in some tier or on the way to one."""
    ends = [run.start + len(pages) for pages in run.pages]
    return max([*ends, *(pages.stop for coming in run.coming for pages in coming)]) - run.start

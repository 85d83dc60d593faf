"""The windowed pages of the prefix cache: snapshots, their recency and quotas, tier by tier."""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from .radix import Run
from .shelf import Shelf
from .spec import GroupSpec
from .tier import Tier
from .window_pages import NUM_TIERS, Reason, Snapshot, WindowPage

ALWAYS_KEPT = 4  # snapshots at positions that were asked for, however small the tier

Discard = Callable[[int, int, Sequence[Hashable]], None]  # tier, group, names


class Windows:
    """Snapshots at points of a radix tree.

    Snapshots that overlap share their pages. Each tier has its own set of snapshots; in each, those that a longer turn
    has superseded go first, then the least recently used, and a reason with a quota gives way to itself.

    Args:
        groups: number and geometry of the windowed groups that look back at all (windows of two keys and more).
        shelves: by tier.
        quotas: reason -> the share of a tier that its snapshots may take: of its budget, or of its windowed pools.
        discard: called with the names of pages that have left a tier.
    """

    def __init__(
        self,
        groups: Sequence[tuple[int, GroupSpec]],
        page_size: int,
        shelves: Sequence[Shelf],
        quotas: Mapping[Reason, float],
        discard: Discard,
    ) -> None:
        self.groups = tuple(groups)
        self.page_size = page_size
        self.shelves = shelves
        self.quotas = dict(quotas)
        self.queues = tuple({reason: OrderedDict() for reason in Reason} for _ in shelves)  # oldest first
        self.num_evicted = 0
        self._discard = discard
        self._bytes = tuple(dict.fromkeys(Reason, 0) for _ in shelves)

    @property
    def num_snapshots(self) -> int:
        """Snapshots that at least one tier has, slack not counted."""
        return len({s for queues in self.queues for queue in queues.values() for s in queue if s.main is None})

    def first_page(self, number: int, end: int) -> int:
        """The first page of snapshot group `number` that a resume after `end` pages needs."""
        return self.groups[number][1].first_visible(end * self.page_size) // self.page_size

    def resume_points(self, path: Sequence[Run], limit: int) -> Iterator[int]:
        """The page counts, at most `limit`, at which a prefix along `path` has its windows somewhere; longest first.

        0, where nothing is needed, is not among them.
        """
        if not self.groups:
            if limit:
                yield limit
            return
        for run in reversed(path):
            ends = run.window_ends
            for i in range(bisect_right(ends, limit - 1) - 1, -1, -1):
                if self.pages_for(path, run, ends[i] + 1) is not None:
                    yield ends[i] + 1

    def pages_for(self, path: Sequence[Run], run: Run, end: int) -> list[list[WindowPage]] | None:
        """What a resume after `end` pages needs, group by group; None when something is nowhere. `run` holds the last."""
        found = []
        for number in range(len(self.groups)):
            pages = []
            for index in range(self.first_page(number, end), end):
                page = run.at(index).windows.get((number, index))
                if page is None or not page.is_somewhere:
                    return None
                pages.append(page)
            found.append(pages)
        return found

    def page(self, number: int, run: Run, index: int) -> WindowPage | None:
        return run.at(index).windows.get((number, index))

    def add_page(self, number: int, run: Run, index: int, device_id: int) -> WindowPage:
        """The cache comes to know a page that is on the device; its user holds it."""
        page = self._new_page(number, run, index, Tier.DEVICE, device_id)
        page.holders[Tier.DEVICE] = page.users[Tier.DEVICE] = 1
        return page

    def adopt(self, run: Run, end: int, tier: int) -> None:
        """The windows before `end` turned out to be in `tier`; there is room for them."""
        pages = []
        for number, (group, _) in enumerate(self.groups):
            pages.append([])
            for index in range(self.first_page(number, end), end):
                page = self.page(number, run, index)
                if page is None:
                    page = self._new_page(number, run, index, tier, self.shelves[tier].pools[group].allocate(1)[0])
                elif page.ids[tier] is None:
                    page.ids[tier] = self.shelves[tier].pools[group].allocate(1)[0]
                pages[-1].append(page)
        self.enter(self.store(run, end, pages, Reason.BRANCH), tier)

    def _new_page(self, number: int, run: Run, index: int, tier: int, page_id: int) -> WindowPage:
        node = run.at(index)
        page = WindowPage(number, node.keys[index - node.start], index, node)
        page.ids[tier] = page_id
        node.windows[number, index] = page
        if number == 0:
            insort(node.window_ends, index)
        return page

    def use(self, page: WindowPage, tier: int) -> None:
        """Hold a page that is in `tier` and keep it from being evicted there."""
        page.holders[tier] += 1
        page.users[tier] += 1
        if page.users[tier] == 1:
            self._pool(page, tier).hold(1)

    def stop_use(self, page: WindowPage, tier: int) -> None:
        page.users[tier] -= 1
        if page.users[tier] == 0:
            self._pool(page, tier).let_go(1)
        self._drop_holder(page, tier)

    def place(self, page: WindowPage, tier: int, page_id: int) -> None:
        """The page is in `tier` too, for the snapshots that hold it there; nobody holds it: it is given back."""
        if page.holders[tier] == 0 or page.ids[tier] is not None:
            self._pool(page, tier).release((page_id,))
            if page.ids[tier] is None:
                self._discard(tier, self.groups[page.group][0], [page.key])
            return
        page.ids[tier] = page_id

    def store(self, run: Run, end: int, pages: Sequence[Sequence[WindowPage]], reason: Reason) -> Snapshot:
        """Keep `pages`, which are on the device, as the snapshot after `end` pages; `run` holds the last of them."""
        node = run.at(end - 1)
        snapshot = node.snapshots.get(end)
        if snapshot is None:
            snapshot = node.snapshots[end] = Snapshot(end, node, tuple(map(tuple, pages)), reason)
            for page in snapshot:
                page.snapshots.append(snapshot)
        elif snapshot.reason is not reason:
            self._change_reason(snapshot, reason)
        if not snapshot.in_tier[Tier.DEVICE] and all(p.ids[Tier.DEVICE] is not None for p in snapshot):
            self.enter(snapshot, Tier.DEVICE)
        return snapshot

    def store_slack(self, main: Snapshot, pages: Sequence[Sequence[WindowPage]]) -> Snapshot:
        """Keep the pages before those of `main`, which are on the device, as long as there is plenty of room."""
        if main.slack is None:
            slack = main.slack = Snapshot(main.end, main.run, tuple(map(tuple, pages)), Reason.SLACK, main=main)
            for page in slack:
                page.snapshots.insert(0, slack)  # whoever uses the page uses a window first of all
            self.enter(slack, Tier.DEVICE)
        return main.slack

    def enter(self, snapshot: Snapshot, tier: int) -> None:
        """The snapshot holds its pages in `tier` from now on; those that are not there yet come later."""
        snapshot.in_tier[tier] = True
        for page in snapshot:
            page.holders[tier] += 1
        self.queues[tier][snapshot.reason][snapshot] = None
        self._bytes[tier][snapshot.reason] += self._size(snapshot, tier)

    def touch(self, snapshot: Snapshot, clock: int) -> None:
        """The snapshot counts as used now, in all tiers."""
        snapshot.last_used = clock
        if snapshot.reason is Reason.SUPERSEDED:
            self._change_reason(snapshot, Reason.BRANCH)  # others come back to where a conversation went on
        for queues in self.queues:
            queue = queues[snapshot.reason]
            if snapshot in queue:
                queue.move_to_end(snapshot)
        other = snapshot.slack
        if other is not None:
            self.touch(other, clock)

    def supersede(self, snapshot: Snapshot) -> None:
        """A sequence went on from the end of a turn to a later end: evict this one first, unless other paths go on here.

        A conversation resumes from its end only. Kept in order of use, the ends of its earlier turns would push out the
        ends of other conversations.
        """
        branches = snapshot.end == snapshot.run.stop and len(snapshot.run.children) > 1
        if snapshot.reason in (Reason.PROMPT_END, Reason.OUTPUT_END) and not branches:
            self._change_reason(snapshot, Reason.SUPERSEDED)
            if snapshot.slack is not None:
                self.drop_everywhere(snapshot.slack)

    def over_quota(self, reason: Reason, tier: int) -> Snapshot | None:
        """The snapshot to drop because its reason has more than its share of `tier`."""
        share, queue = self.quotas.get(reason), self.queues[tier][reason]
        if share is None or self._bytes[tier][reason] <= share * self._capacity(tier):
            return None
        kept = ALWAYS_KEPT if share and reason in (Reason.FIXED, Reason.INTERVAL) else 0
        return next(iter(queue)) if len(queue) > kept else None

    def victim(self, tier: int, number: int | None = None) -> Snapshot | None:
        """The snapshot to evict next from `tier`; with `number`, to free pages of that group.

        One whose pages are all in use would free nothing now and be missed later.
        """
        oldest = None
        for reason, queue in self.queues[tier].items():
            snapshot = next((s for s in queue if self._frees(s, tier, number)), None)
            if snapshot is not None and reason is Reason.SUPERSEDED and self.over_quota(reason, tier) is not None:
                return snapshot
            if snapshot is not None and (oldest is None or snapshot.last_used < oldest.last_used):
                oldest = snapshot
        return oldest

    def drop(self, snapshot: Snapshot, tier: int) -> None:
        """The snapshot leaves `tier`; pages that nobody else holds there are freed."""
        snapshot.in_tier[tier] = False
        del self.queues[tier][snapshot.reason][snapshot]
        self._bytes[tier][snapshot.reason] -= self._size(snapshot, tier)
        self.num_evicted += 1
        slack = snapshot.slack
        if not any(snapshot.in_tier):
            self._forget_snapshot(snapshot)
        for page in snapshot:
            self._drop_holder(page, tier)
        if slack is not None and not any(snapshot.in_tier):
            self.drop_everywhere(slack)

    def forget(self, run: Run, index: int) -> None:
        """The run's pages from `index` on leave the tree: their snapshots go with them."""
        for end in sorted(end for end in run.snapshots if end > index):
            self.drop_everywhere(run.snapshots[end])
        for where in [where for where in run.windows if where[1] >= index]:  # those that a transfer still reads
            self._forget_page(run.windows[where])

    def _capacity(self, tier: int) -> int:
        """Bytes that windows could take at most: of the budget, or of their own pools."""
        shelf = self.shelves[tier]
        if shelf.budget_bytes is not None:
            return shelf.budget_bytes
        return sum(shelf.pools[g].num_pages * shelf.pools[g].bytes_per_page for g, _ in self.groups)

    def _pool(self, page: WindowPage, tier: int):
        return self.shelves[tier].pools[self.groups[page.group][0]]

    def _size(self, snapshot: Snapshot, tier: int) -> int:
        pools = self.shelves[tier].pools
        return sum(len(p) * pools[g].bytes_per_page for p, (g, _) in zip(snapshot.pages, self.groups, strict=True))

    def _frees(self, snapshot: Snapshot, tier: int, number: int | None) -> bool:
        pages = snapshot if number is None else snapshot.pages[number]
        return not all(page.users[tier] for page in pages)

    def _change_reason(self, snapshot: Snapshot, reason: Reason) -> None:
        for tier, queues in enumerate(self.queues):
            if snapshot.in_tier[tier]:
                del queues[snapshot.reason][snapshot]
                queues[reason][snapshot] = None
                size = self._size(snapshot, tier)
                self._bytes[tier][snapshot.reason] -= size
                self._bytes[tier][reason] += size
        snapshot.reason = reason

    def _drop_holder(self, page: WindowPage, tier: int) -> None:
        page.holders[tier] -= 1
        if page.holders[tier] or page.ids[tier] is None:
            return
        self._pool(page, tier).release((page.ids[tier],))
        page.ids[tier] = None
        self._discard(tier, self.groups[page.group][0], [page.key])
        if not page.is_somewhere:
            self._forget_page(page)

    def drop_everywhere(self, snapshot: Snapshot) -> None:
        """The snapshot leaves all tiers."""
        for tier in range(NUM_TIERS):
            if snapshot.in_tier[tier]:
                self.drop(snapshot, tier)

    @staticmethod
    def _forget_snapshot(snapshot: Snapshot) -> None:
        if snapshot.main is None:
            del snapshot.run.snapshots[snapshot.end]
        else:
            snapshot.main.slack = None
        for page in snapshot:
            page.snapshots.remove(snapshot)

    def _forget_page(self, page: WindowPage) -> None:
        run = page.run
        if run.windows.get((page.group, page.index)) is page:
            del run.windows[page.group, page.index]
            if page.group == 0:
                del run.window_ends[bisect_left(run.window_ends, page.index)]

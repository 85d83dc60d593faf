"""The full-attention pages of the prefix cache: which prefix is in which tier, how recently used, and who holds it."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from .radix import RadixTree, Run
from .shelf import Shelf
from .tier import Tier


class FullPages:
    """Pages of the full group, tier by tier, on the runs of a radix tree.

    Recency is the path's: using a prefix counts for all of its runs in all tiers, so that what is hot above does not age
    out below. Holders (`pin`) keep a run and everything above it from being evicted from one tier.

    Args:
        group: the full group's number, or None: then nothing ties a prefix to pages, and a run is there when it is known.
        shelves: by tier.
    """

    def __init__(self, tree: RadixTree, group: int | None, shelves: Sequence[Shelf]) -> None:
        self.tree = tree
        self.group = group
        self.shelves = shelves
        self.order: tuple[OrderedDict[Run, None], ...] = tuple(OrderedDict() for _ in shelves)  # oldest first
        self.clock = 0

    def pool(self, tier: int):
        return self.shelves[tier].pools[self.group]

    def resident(self, path: Sequence[Run], num_pages: int, tier: int) -> int:
        """How many leading pages of a path's first `num_pages` are in `tier`."""
        if self.group is None:
            return num_pages
        have = 0
        for run in path:
            wanted = min(len(run.keys), num_pages - run.start)
            got = min(len(run.pages[tier]), wanted)
            have += got
            if got < wanted:
                break
        return have

    def ids(self, path: Sequence[Run], start: int, stop: int, tier: int) -> list[int]:
        """The ids in `tier` of pages `start .. stop - 1` of a path, which are all there."""
        found: list[int] = []
        for run in path:
            if run.stop > start and run.start < stop:
                found += run.pages[tier][max(0, start - run.start) : stop - run.start]
        return found

    @staticmethod
    def names(run: Run, start: int, stop: int) -> list[Hashable]:
        """The names of pages `start .. stop - 1` of the path to `run`."""
        path = [node for node in run.up() if node.start < stop and node.stop > start][::-1]
        return [k for node in path for k in node.keys[max(0, start - node.start) : stop - node.start]]

    def touch(self, run: Run) -> None:
        """The prefix that ends with `run` counts as used now, its end least."""
        self.clock += 1
        for node in run.up():
            node.last_used = self.clock
            for order in self.order:
                if node in order:
                    order.move_to_end(node)

    def known(self, run: Run) -> None:
        """A new run: where nothing ties it to pages it is ordered as a whole."""
        if self.group is None:
            self.order[Tier.DEVICE][run] = None

    def pin(self, run: Run, tier: int) -> None:
        for node in run.up():
            if node.pins[tier] == 0 and self.group is not None:
                self.pool(tier).hold(len(node.pages[tier]))
            node.pins[tier] += 1

    def unpin(self, run: Run, tier: int) -> None:
        for node in run.up():
            node.pins[tier] -= 1
            if node.pins[tier] == 0 and self.group is not None:
                self.pool(tier).let_go(len(node.pages[tier]))

    def attach(self, run: Run, tier: int, ids: Sequence[int]) -> None:
        """The next pages of `run` are in `tier`, as `ids`; they were taken from the pool."""
        if not ids:
            return
        pages = run.pages[tier]
        if not pages:
            self.order[tier][run] = None
        pages.extend(ids)
        if run.pins[tier]:
            self.pool(tier).hold(len(ids))

    def split(self, run: Run, index: int) -> Run:
        """`RadixTree.split`; the upper part is older than anything, until it is touched."""
        upper = self.tree.split(run, index)
        for tier, order in enumerate(self.order):
            if run in order:
                if self.group is None or upper.pages[tier]:
                    order[upper] = None
                    order.move_to_end(upper, last=False)
                if self.group is not None and not run.pages[tier]:
                    del order[run]
        return upper

    def victim(self, tier: int) -> Run | None:
        """The run whose last page in `tier` is to go next."""
        for run in self.order[tier]:
            if run.pins[tier] == 0:
                return self._last_below(run, tier)
        return None

    def evict(self, run: Run, tier: int, count: int) -> list[Hashable]:
        """Free up to `count` pages at the end of what `tier` holds of a victim; returns their names."""
        pages = run.pages[tier]
        count = min(count, len(pages))
        keep = len(pages) - count
        self.pool(tier).release(pages[keep:])
        del pages[keep:]
        if not pages:
            del self.order[tier][run]
        return run.keys[keep : keep + count]

    def attach_range(self, run: Run, tier: int, start: int, ids: Sequence[int], arrived: int) -> list[Hashable]:
        """Pages from `start` on that were on the way to `tier`, up to within `run`, have ended; the first `arrived` came.

        What no longer continues the prefix in `tier` is given back; returns the names of those among the arrived.
        """
        pieces = [node for node in run.up() if node.stop > start and node.start < start + len(ids)][::-1]
        left_over: list[Hashable] = []
        for node in pieces:
            first, stop = max(start, node.start), min(node.stop, start + len(ids))
            own = ids[first - start : stop - start]
            node.coming[tier].remove(range(first, stop))
            came = max(0, min(arrived - (first - start), len(own)))
            parent = node.parent
            continues = len(node.pages[tier]) == first - node.start and (
                first > node.start or parent is self.tree.root or len(parent.pages[tier]) == len(parent.keys)
            )
            kept = came if continues else 0
            self.attach(node, tier, own[:kept])
            self.pool(tier).release(own[kept:])
            left_over += node.keys[first - node.start + kept : first - node.start + came]
        return left_over

    def _last_below(self, run: Run, tier: int) -> Run:
        """A prefix shrinks from its end: the last of those runs below that are in `tier`, normally `run` itself."""
        while True:
            children = run.children.values()
            below = next((c for c in children if self.group is None or c.pages[tier]), None)
            if below is None:
                return run
            run = below

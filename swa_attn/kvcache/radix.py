"""A radix tree of page names: which prefixes are known, and per tier how much of each is there.

A `Run` is a stretch of pages without a branch. Page names are chained (equal names mean equal tokens up to the page's
end), so how far two chains agree is found by bisection, and a prefix of thousands of pages costs a few comparisons.

In each tier the full-attention pages that are there form prefixes: a page is evicted after all pages that follow it. So
one number per run and tier, the length of a list of page ids, says which of its pages are there.
"""

from bisect import bisect_left
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from .window_pages import NUM_TIERS, Snapshot, WindowPage


@dataclass(eq=False, slots=True)
class Run:
    """Pages `start .. stop - 1` of every prefix through it. The root is empty."""

    keys: list[Hashable]
    start: int
    parent: "Run | None"
    children: dict[Hashable, "Run"] = field(default_factory=dict)
    pages: tuple[list[int], ...] = field(
        default_factory=lambda: tuple([] for _ in range(NUM_TIERS))
    )  # the leading ones
    coming: tuple[list[range], ...] = field(default_factory=lambda: tuple([] for _ in range(NUM_TIERS)))  # on the way
    pins: list[int] = field(default_factory=lambda: [0] * NUM_TIERS)  # holders that keep the run and all above it
    windows: dict[tuple[int, int], WindowPage] = field(default_factory=dict)  # by (group, page index)
    window_ends: list[int] = field(default_factory=list)  # sorted page indices of the first group's windows
    snapshots: dict[int, Snapshot] = field(default_factory=dict)  # by end; slack is not among them
    last_used: int = 0
    num_uses: int = 0  # by sequences
    refreshed: float = 0.0  # when a shared store was last told that the run is in use

    @property
    def stop(self) -> int:
        return self.start + len(self.keys)

    def up(self) -> Iterator["Run"]:
        """This run and all above it, without the root."""
        run = self
        while run.parent is not None:
            yield run
            run = run.parent

    def reach(self, tier: int) -> int:
        """How many leading pages are in `tier` or on the way there, without a hole."""
        end = self.start + len(self.pages[tier])
        for pages in sorted(self.coming[tier], key=lambda r: r.start):
            if pages.start <= end:
                end = max(end, pages.stop)
        return end - self.start

    def at(self, index: int) -> "Run":
        """The run on this path that holds page `index`, which lies at or before this run's end."""
        run = self
        while run.start > index:
            run = run.parent
        return run


def common_length(a: Sequence[Hashable], b: Sequence[Hashable], offset: int, limit: int) -> int:
    """How many names of `a` equal those of `b[offset:limit]`, at least the first being equal; both are chains."""
    length = min(len(a), limit - offset)
    if a[length - 1] == b[offset + length - 1]:
        return length
    low, high = 1, length - 1
    while low < high:
        middle = (low + high + 1) // 2
        if a[middle - 1] == b[offset + middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


class RadixTree:
    """Runs below an empty root. It knows names and structure only; who owns pages is its user's business."""

    def __init__(self) -> None:
        self.root = Run([], 0, None)
        self.num_keys = 0

    def match(self, keys: Sequence[Hashable], limit: int) -> tuple[list[Run], int]:
        """The runs that `keys[:limit]` goes through, the last one perhaps in part, and the number of pages known."""
        path: list[Run] = []
        run, at = self.root, 0
        while at < limit:
            child = run.children.get(keys[at])
            if child is None:
                break
            common = common_length(child.keys, keys, at, limit)
            path.append(child)
            at += common
            if common < len(child.keys):
                break
            run = child
        return path, at

    def split(self, run: Run, index: int) -> Run:
        """Divide a run before page `index`; returns the new upper part. `run` stays the lower part, whose end it keeps."""
        count = index - run.start
        upper = Run(run.keys[:count], run.start, run.parent, last_used=run.last_used, num_uses=run.num_uses)
        upper.refreshed = run.refreshed
        run.parent.children[run.keys[0]] = upper
        run.keys = run.keys[count:]
        run.start = index
        run.parent = upper
        upper.children[run.keys[0]] = run
        upper.pins[:] = run.pins
        for tier in range(NUM_TIERS):
            pages = run.pages[tier]
            upper.pages[tier].extend(pages[:count])
            del pages[:count]
            coming = run.coming[tier][:]
            upper.coming[tier][:] = [range(r.start, min(r.stop, index)) for r in coming if r.start < index]
            run.coming[tier][:] = [range(max(r.start, index), r.stop) for r in coming if r.stop > index]
        self._split_windows(run, upper, index)
        return upper

    def add(self, parent: Run, keys: Sequence[Hashable]) -> Run:
        """New pages after the end of `parent`; grows it if nothing else follows it."""
        self.num_keys += len(keys)
        if parent is not self.root and not parent.children:
            parent.keys.extend(keys)
            return parent
        child = Run(list(keys), parent.stop, parent, last_used=parent.last_used, num_uses=1)
        parent.children[keys[0]] = child
        return child

    def cut(self, run: Run, index: int) -> None:
        """Forget the run's pages from `index` on; nothing may follow it. A run without pages leaves the tree."""
        count = index - run.start
        self.num_keys -= len(run.keys) - count
        if count == 0:
            del run.parent.children[run.keys[0]]
        del run.keys[count:]

    @staticmethod
    def _split_windows(run: Run, upper: Run, index: int) -> None:
        for where, page in list(run.windows.items()):
            if page.index < index:
                upper.windows[where] = run.windows.pop(where)
                page.run = upper
        at = bisect_left(run.window_ends, index)
        upper.window_ends = run.window_ends[:at]
        run.window_ends = run.window_ends[at:]
        for end in [end for end in run.snapshots if end <= index]:
            upper.snapshots[end] = run.snapshots.pop(end)
            upper.snapshots[end].run = upper

"""Which prefixes are cached: a tree of pages named by digests, and window snapshots at some of its nodes.

A prefix of n tokens can be resumed when the full-attention pages of all its tokens are here **and** a window snapshot
exists at n: the windowed groups' pages that hold the last `window - 1` tokens before n. The two are evicted separately:
full pages leaf first, snapshots in any order, least recently used first in both cases. Snapshots that overlap share
their pages (the pool counts the holders).
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from .pool import PagePool

SnapshotPages = tuple[tuple[int, ...], ...]  # per windowed group, the pages of the window, oldest first


@dataclass(eq=False, slots=True)
class Node:
    """One page of tokens. `page` is its full-group page (None in a model without a full group)."""

    digest: bytes
    parent: "Node | None"
    page: int | None
    last_used: int
    num_children: int = 0
    num_pins: int = 0  # sequences whose last finished page this is; they keep the whole path to the root
    snapshot: SnapshotPages | None = None


@dataclass(frozen=True)
class Match:
    """What the tree knows of a chain of pages: the nodes that exist, and how many of them can be resumed from."""

    nodes: tuple[Node, ...]
    num_safe: int  # pages up to the last position with a usable window snapshot

    @property
    def resume_node(self) -> Node | None:
        return self.nodes[self.num_safe - 1] if self.num_safe else None

    @property
    def snapshot(self) -> SnapshotPages | None:
        return self.nodes[self.num_safe - 1].snapshot if self.num_safe else None


class PrefixTree:
    """Nodes by digest. Holds a `keep` on every page that it names.

    Without a full group nothing ties a node to its ancestors' pages, and nodes cost no pages: `max_nodes` bounds them.
    """

    def __init__(self, full: PagePool | None, windowed: Sequence[PagePool], max_nodes: int) -> None:
        self._full = full
        self._windowed = tuple(windowed)
        self._max_nodes = max_nodes
        self._nodes: dict[bytes, Node] = {}
        self._snapshots: OrderedDict[Node, None] = OrderedDict()  # least recently used first
        self._leaves: list[tuple[int, int, Node]] = []  # heap by last use; an entry may be out of date
        self._clock = itertools.count()
        self.num_evicted_pages = 0
        self.num_evicted_snapshots = 0

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def num_snapshots(self) -> int:
        return len(self._snapshots)

    def match(self, digests: Sequence[bytes]) -> Match:
        """The nodes of the longest cached prefix of a chain, and its window-safe length. Changes nothing."""
        nodes = []
        for digest in digests:
            node = self._nodes.get(digest)
            if node is None:
                break
            nodes.append(node)
        num_safe = len(nodes)
        while num_safe and self._windowed and nodes[num_safe - 1].snapshot is None:
            num_safe -= 1
        return Match(tuple(nodes), num_safe)

    def insert(self, parent: Node | None, digest: bytes, page: int | None) -> Node:
        """The node named `digest`, made from `page` unless it exists (then `page` stays the caller's business)."""
        node = self._nodes.get(digest)
        if node is None:
            node = self._nodes[digest] = Node(digest, parent, page, next(self._clock))
            if parent is not None:
                parent.num_children += 1
            if self._full is not None:
                self._full.keep((page,))
        return node

    def pin(self, node: Node) -> None:
        node.num_pins += 1

    def unpin(self, node: Node) -> None:
        """Undo one `pin`; the path to the node counts as used now."""
        node.num_pins -= 1
        node.last_used = next(self._clock)
        self._offer(node)
        while len(self._nodes) > self._max_nodes and self._evict_leaf():
            pass

    def store_snapshot(self, node: Node, pages: SnapshotPages) -> None:
        """Keep `pages` as the window snapshot at the end of `node`, unless it has one."""
        if node.snapshot is None:
            node.snapshot = pages
            for pool, kept in zip(self._windowed, pages, strict=True):
                pool.keep(kept)
        self.touch_snapshot(node)

    def touch_snapshot(self, node: Node) -> None:
        """The snapshot at `node` counts as used now."""
        self._snapshots[node] = None
        self._snapshots.move_to_end(node)

    def supersede_snapshot(self, node: Node) -> None:
        """A sequence went on from the snapshot at `node` to a later one: drop it first, unless other paths branch here.

        A conversation resumes from its end only. Kept in order of use, the ends of its earlier turns would push out the
        ends of other conversations.
        """
        if node.snapshot is not None and node.num_children < 2:
            self._snapshots.move_to_end(node, last=False)

    def evict_full(self, count: int) -> None:
        """Free full pages, leaves first, until `count` more are free or nothing more can be."""
        target = self._full.num_free + count
        while self._full.num_free < target and self._evict_leaf():
            pass

    def evict_windowed(self, pool: PagePool, count: int) -> None:
        """Drop snapshots until `count` more pages of `pool` are free or nothing more can be."""
        target = pool.num_free + count
        while pool.num_free < target and (node := self._oldest_snapshot(pool)) is not None:
            self._drop_snapshot(node)

    def _oldest_snapshot(self, pool: PagePool) -> Node | None:
        """The one to drop next. One whose pages are all in use would free nothing now and be missed later."""
        index = self._windowed.index(pool)
        for node in self._snapshots:
            if not all(pool.is_in_use(page) for page in node.snapshot[index]):
                return node
        return None

    def _drop_snapshot(self, node: Node) -> None:
        for pool, pages in zip(self._windowed, node.snapshot, strict=True):
            pool.drop(pages)
        node.snapshot = None
        del self._snapshots[node]
        self.num_evicted_snapshots += 1

    def _evict_leaf(self) -> bool:
        """Remove the least recently used leaf that no sequence needs; False when there is none."""
        while self._leaves:
            last_used, _, node = heapq.heappop(self._leaves)
            if self._is_evictable(node) and node.last_used == last_used:
                self._remove(node)
                return True
        return False

    def _is_evictable(self, node: Node) -> bool:
        return node.num_pins == 0 and node.num_children == 0 and self._nodes.get(node.digest) is node

    def _remove(self, node: Node) -> None:
        if node.snapshot is not None:
            self._drop_snapshot(node)
        if self._full is not None:
            self._full.drop((node.page,))
            self.num_evicted_pages += 1
        del self._nodes[node.digest]
        if node.parent is not None:
            node.parent.num_children -= 1
            self._offer(node.parent)

    def _offer(self, node: Node) -> None:
        """Queue `node` for eviction if it qualifies; forget out-of-date entries once they dominate."""
        if self._is_evictable(node):
            heapq.heappush(self._leaves, (node.last_used, next(self._clock), node))
        if len(self._leaves) > 2 * len(self._nodes) + 64:
            self._leaves = [e for e in self._leaves if self._is_evictable(e[2]) and e[2].last_used == e[0]]
            heapq.heapify(self._leaves)

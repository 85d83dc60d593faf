"""The pages of one running sequence, and the names of the prefix pages it asked for."""

from dataclasses import dataclass, field

from .prefix_tree import Node

ABSENT = -1  # a block-table entry without a page


@dataclass(frozen=True)
class PrefixKey:
    """A prompt as the cache sees it: its length and the digests of its full pages, chained from `namespace`."""

    namespace: bytes
    digests: tuple[bytes, ...]
    num_tokens: int


@dataclass(eq=False)
class KVSequence:
    """A running sequence: `KVCache.begin` makes it, `KVCache.end` takes its pages back.

    `block_tables` maps a group's name to its page ids, logical page by logical page; a windowed group has `ABSENT`
    where the window has left a page behind, and `first_pages` says where its pages start.
    """

    key: PrefixKey
    hit_tokens: int  # the prefix that came from the cache
    block_tables: dict[str, list[int]]
    first_pages: dict[str, int]
    node: Node | None  # the last page in the prefix tree
    last_snapshot: Node | None  # the last one that it resumed from or caused
    snapshot_points: frozenset[int]  # positions where a window snapshot is wanted
    num_computed: int
    digests: list[bytes] = field(default_factory=list)  # of the finished pages
    tail: list[int] = field(default_factory=list)  # tokens of the unfinished page
    ended: bool = False

    def num_pages(self, group: str) -> int:
        """Pages of `group` that the sequence holds now."""
        return len(self.block_tables[group]) - self.first_pages[group]

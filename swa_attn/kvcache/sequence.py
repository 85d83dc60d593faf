"""The pages of one running sequence, and the names of the prefix pages it asked for."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from .planner import Plan
from .radix import Run
from .tier import Tier
from .window_pages import Reason, Snapshot, WindowPage

ABSENT = -1  # a block-table entry without a page


@dataclass(frozen=True)
class PrefixKey:
    """A prompt as the cache sees it: its length and the names of its full pages.

    The names are chained: equal names mean equal tokens from the start of the prompt to the page's end, in one namespace.
    `KVCache.key` makes them from tokens, as digests that start at `namespace`.
    """

    namespace: bytes
    digests: tuple[Hashable, ...]
    num_tokens: int


@dataclass(eq=False)
class KVSequence:
    """A running sequence: `KVCache.begin` makes it, `KVCache.end` takes its pages back.

    `block_tables` maps a group's name to its page ids, logical page by logical page; a windowed group has `ABSENT`
    where the window has left a page behind, and `first_pages` says where its pages start. While `is_loading`, pages
    are still being read from the store, and nothing else means anything yet.
    """

    key: PrefixKey
    block_tables: dict[str, list[int]] = field(default_factory=dict)
    first_pages: dict[str, int] = field(default_factory=dict)
    hit_tokens: int = 0  # the prefix that came from the cache
    hit_tokens_by_tier: dict[Tier, int] = field(default_factory=dict)  # by the fastest tier that had the full pages
    plan: Plan | None = None
    is_loading: bool = False
    deadline: float = 0.0  # of loading, on the monotonic clock
    needs_rebuild: bool = False  # before the first step: KVCache.rebuilt says that it is done
    num_computed: int = 0
    digests: list[Hashable] = field(default_factory=list)  # of the finished pages
    tail: list[int] = field(default_factory=list)  # tokens after those that the key names
    ended: bool = False
    # What the cache keeps about it:
    inserted: int = 0  # its first pages that the prefix tree owns
    run: Run | None = None  # the last page in the prefix tree; held on the device
    windows: dict[tuple[int, int], WindowPage] = field(default_factory=dict)  # its pages that snapshots share
    points: dict[int, Reason] = field(default_factory=dict)  # positions where a snapshot is wanted
    last_end: Snapshot | None = None  # the end of a turn that it resumed from or caused
    host_run: Run | None = None  # held on the host: the prefix that is read there in place
    found: tuple[int, ...] = ()  # pages of the prefix per tier when it was looked up
    loads: int = 0  # transfers from the store that it waits for
    waits_for_another: bool = False  # to read what it needs too
    release_loads: list = field(default_factory=list)  # what to undo when they have ended

    def num_pages(self, group: str) -> int:
        """Pages of `group` that the sequence holds now."""
        return len(self.block_tables[group]) - self.first_pages[group] if self.block_tables else 0

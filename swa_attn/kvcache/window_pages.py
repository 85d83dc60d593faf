"""Windowed pages that the prefix cache keeps, and the snapshots that keep them."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from .tier import Tier

if TYPE_CHECKING:
    from .radix import Run

NUM_TIERS = len(Tier)


class Reason(Enum):
    """Why a snapshot was taken; each has its own recency and quota."""

    SUPERSEDED = "superseded"  # the end of an earlier turn of a conversation that has gone on: the first to be evicted
    SLACK = "slack"  # pages before the windows of an end, to resume shortly before it too
    PROMPT_END = "prompt end"
    OUTPUT_END = "output end"
    BRANCH = "branch"
    FIXED = "fixed"
    INTERVAL = "interval"

    __hash__ = object.__hash__  # members are compared by identity; the default hashes the name each time


@dataclass(eq=False, slots=True)
class WindowPage:
    """One page of one windowed group, named by the digest of the page's tokens and all before them.

    Per tier: its id there (None: absent), and how many snapshots, sequences and transfers hold it. Without holders in a
    tier it is freed there; without any tier it is forgotten.
    """

    group: int  # its number among the snapshot groups
    key: Hashable
    index: int  # pages before it
    run: "Run"
    ids: list[int | None] = field(default_factory=lambda: [None] * NUM_TIERS)
    holders: list[int] = field(default_factory=lambda: [0] * NUM_TIERS)
    users: list[int] = field(default_factory=lambda: [0] * NUM_TIERS)  # those holders that keep it from being evicted
    snapshots: "list[Snapshot]" = field(default_factory=list)  # that name it, the latest last
    is_coming: bool = False  # being written to the store

    @property
    def snapshot(self) -> "Snapshot | None":
        return self.snapshots[-1] if self.snapshots else None

    @property
    def is_somewhere(self) -> bool:
        return any(page is not None for page in self.ids)


@dataclass(eq=False, slots=True)
class Snapshot:
    """What a resume after `end` pages needs, group by group; with reason SLACK the pages that come before that of `main`."""

    end: int
    run: "Run"
    pages: tuple[tuple[WindowPage, ...], ...]  # per snapshot group, oldest first
    reason: Reason
    main: "Snapshot | None" = None
    slack: "Snapshot | None" = None
    last_used: int = 0
    in_tier: list[bool] = field(default_factory=lambda: [False] * NUM_TIERS)  # held there, or on the way

    def __iter__(self):
        for pages in self.pages:
            yield from pages

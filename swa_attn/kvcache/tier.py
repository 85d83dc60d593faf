"""The tiers of the cache, fastest first, and the states of a page in one of them."""

from enum import Enum, IntEnum


class Tier(IntEnum):
    """Where a page can be. A number is an index into per-tier lists."""

    DEVICE = 0
    HOST = 1  # pinned
    DISK = 2  # or any store behind the host


class PageState(Enum):
    """What one tier knows of one page; docs/kv_tiers.md has the transitions."""

    ABSENT = "absent"
    ARRIVING = "arriving"  # its bytes are on the way; nobody may read them yet
    RESIDENT = "resident"  # readable, and evictable when room is needed
    IN_USE = "in use"  # readable, held by a sequence or read by a transfer: not evictable

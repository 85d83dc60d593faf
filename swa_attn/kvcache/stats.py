"""Numbers about a cache at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PoolStats:
    """Pages of one group's pool. `oblivious_*`: what the same sequences would use if no window ever freed a page."""

    num_pages: int
    bytes_per_page: int
    in_use: int  # by running sequences
    cached: int  # only by the prefix cache: available on demand
    free: int
    peak_in_use: int
    oblivious_in_use: int
    oblivious_peak: int


@dataclass(frozen=True)
class CacheStats:
    """Counts since the cache was made, except `pools` and `num_snapshots`, which are as of now. Lengths in tokens."""

    pools: Mapping[str, PoolStats]
    num_lookups: int
    looked_up_tokens: int
    matched_tokens: int  # whose full-attention pages were there
    hit_tokens: int  # reused: the part of the match up to a window snapshot
    snapshot_misses: int  # lookups that matched further than they could resume
    num_snapshots: int
    evicted_pages: int
    evicted_snapshots: int

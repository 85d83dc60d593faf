"""Paged KV cache with one pool per layer group, whose windowed pools hold windows only. See docs/kvcache.md."""

from .cache import KVCache
from .pool import CacheFull, PageAccountingError, PagePool
from .sequence import ABSENT, KVSequence, PrefixKey
from .sizing import pages_for_budget
from .spec import GroupSpec
from .stats import CacheStats, PoolStats

__all__ = [
    "ABSENT",
    "CacheFull",
    "CacheStats",
    "GroupSpec",
    "KVCache",
    "KVSequence",
    "PageAccountingError",
    "PagePool",
    "PoolStats",
    "PrefixKey",
    "pages_for_budget",
]

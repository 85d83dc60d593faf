"""Tiers below host memory: a slab store on a local SSD, and existing distributed stores. See docs/store.md."""

from .base import Buffer, Store, StoreStats
from .buffers import aligned_empty
from .mooncake_store import MooncakeStore
from .options import SlabOptions
from .redis_store import RedisStore
from .remote import RemoteOptions
from .slab import SlabStore

__all__ = [
    "Buffer",
    "MooncakeStore",
    "RedisStore",
    "RemoteOptions",
    "SlabOptions",
    "SlabStore",
    "Store",
    "StoreStats",
    "aligned_empty",
]

"""The disk tier: records in slots of preallocated segment files."""

import os
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from .base import Buffer, Store, StoreStats, check_key
from .buffers import as_bytes
from .engine import SlabEngine
from .file_io import FileIO
from .options import SlabOptions
from .record import Space


class SlabStore(Store):
    """Records of one namespace and layout in a directory, which may hold others as well (`sibling`).

    Each segment file is written by the process that holds its lock. A process that opens the directory takes over the
    segments nobody holds, up to its capacity, makes new ones for the rest, and reads those of others. What others
    write later is seen after `refresh`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SlabOptions,
        *,
        namespace: bytes,
        layout: bytes = b"",
        quota_bytes: int | None = None,
        io: FileIO | None = None,
    ) -> None:
        self._space, self._quota = Space.of(namespace, layout), _checked_quota(quota_bytes)
        self._engine = SlabEngine(Path(path).resolve(), options, io or FileIO())
        self._user = self._engine.opened()

    def sibling(self, *, namespace: bytes, layout: bytes = b"", quota_bytes: int | None = None) -> "SlabStore":
        """Another namespace or layout on the same files and threads. They are released with the last one closed."""
        store = SlabStore.__new__(SlabStore)
        store._space, store._quota = Space.of(namespace, layout), _checked_quota(quota_bytes)
        store._engine, store._user = self._engine, self._engine.opened()
        return store

    def put(self, key: bytes, buffers: Sequence[Buffer]) -> "Future[bool]":
        return self._engine.put(self._user, self._space, self._quota, check_key(key), as_bytes(buffers))

    def get(self, key: bytes, into: Sequence[Buffer], timeout: float | None = None) -> "Future[bool]":
        return self._engine.get(self._user, self._space, check_key(key), as_bytes(into, writable=True), timeout)

    def contains(self, key: bytes) -> bool:
        return self._engine.contains(self._space, check_key(key))

    def touch(self, key: bytes) -> None:
        self._engine.touch(self._space, check_key(key))

    def delete(self, key: bytes) -> None:
        """The record is gone from this process. Its slot is reused in time; until then a later opening finds it again,
        which is harmless, as a key names its contents."""
        self._engine.delete(self._space, check_key(key))

    def refresh(self) -> None:
        """Reads the headers of other processes' segments anew, and takes over those whose process has ended, up to the
        capacity. Blocks; raises OSError."""
        self._engine.refresh()

    def stats(self) -> StoreStats:
        return self._engine.stats(self._space, self._quota)

    def close(self) -> None:
        self._engine.closed(self._user)


def _checked_quota(quota_bytes: int | None) -> int | None:
    if quota_bytes is not None and quota_bytes < 0:
        raise ValueError(f"quota_bytes: expected at least 0 or None, got {quota_bytes}")
    return quota_bytes

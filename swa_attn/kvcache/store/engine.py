"""What the namespaces of a slab directory share: files, index, threads, breakers."""

import errno
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from .base import StoreStats, resolved, running
from .breaker import Breaker, Permit
from .buffers import ALIGNMENT, Bytes, Staging
from .directory import Directory
from .file_io import FileIO
from .index import Entry, Index, Slot
from .options import SlabOptions
from .record import Space, require_xxhash
from .recovery import find_records
from .segment import Segment
from .slot_io import damage, read_record, write_record
from .workers import WorkerPool

logger = logging.getLogger(__name__)


class SlabEngine:
    """Puts and gets of any namespace. A `user` stands for a store that was opened on it, until that is closed."""

    def __init__(self, path: Path, options: SlabOptions, io: FileIO) -> None:
        require_xxhash()
        self._path, self._options = path, options
        self._process = os.getpid()
        self._lock = threading.Lock()  # of everything in memory; never held during I/O
        self._files_lock = threading.Lock()  # of the directory, and of cutting segments; taken before _lock
        self._scan_lock = threading.Lock()  # of looking for segments and records; taken before the others
        self._directory = Directory(path, options, io)
        self._index = Index()
        self._uncut: list[Segment] = []
        self._pending: dict[tuple[Space, bytes], Future[bool]] = {}
        self._sequence = 0  # of the last write
        self._mac_key = options.mac_key or b""
        self._users: set[object] = set()
        self._refused: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._recovery_seconds = 0.0
        limits = (options.failures_to_trip, options.slow_seconds, options.backoff, options.max_backoff)
        self._reading = Breaker(f"reads of {path}", *limits)
        self._writing = Breaker(f"writes to {path}", *limits)
        self._populate()
        if not options.read_only and not self._directory.owned:
            self._writing.trip()
        self._pool = WorkerPool(
            "swa-store",
            options.workers,
            options.max_writers,
            options.max_waiting_reads,
            options.max_pending_write_bytes,
        )

    def opened(self) -> object:
        """A new user."""
        user = object()
        with self._lock:
            self._users.add(user)
        return user

    def closed(self, user: object) -> None:
        """The last one finishes what was submitted, and releases threads and files."""
        with self._lock:
            last = self._users == {user}
            self._users.discard(user)
        if last and self._pool.close(self._options.close_seconds):
            with self._lock:
                self._index = Index()
            self._directory.close()

    # Requests

    def put(self, user: object, space: Space, quota: int | None, key: bytes, views: list[Bytes]) -> "Future[bool]":
        self._check_process()
        nbytes = sum(view.nbytes for view in views)
        payload = self._options.slot_payload(nbytes)
        with self._lock:
            if (reason := self._refusal(user, payload, quota)) is not None:
                self._refused[reason] += 1
                return resolved(False)
            entry = self._index.find(space, key)
            if entry is not None and entry.length == nbytes:
                self._index.touch(entry)
                self._counts["puts"] += 1
                return resolved(True)
            if (pending := self._pending.get((space, key))) is not None:
                return pending
            future = self._pending[space, key] = running()
        if (permit := self._writing.permit()) is None:
            self._end_put(space, key, "tripped")
            return future

        def job(staging: Staging) -> None:
            self._end_put(space, key, self._guarded(lambda: self._write(staging, space, quota, key, views, permit)))

        if not self._pool.submit_write(job, nbytes):
            self._writing.give_back(permit)
            self._end_put(space, key, "busy")
        return future

    def _refusal(self, user: object, payload: int | None, quota: int | None) -> str | None:
        if user not in self._users:
            return "closed"
        if self._options.read_only:
            return "read_only"
        if payload is None or (quota is not None and payload + ALIGNMENT > quota):
            return "too_large"
        return None

    def _end_put(self, space: Space, key: bytes, reason: str | None) -> None:
        with self._lock:
            future = self._pending.pop((space, key))
            if reason is None:
                self._counts["puts"] += 1
            else:
                self._refused[reason] += 1
        future.set_result(reason is None)

    def get(self, user: object, space: Space, key: bytes, views: list[Bytes], timeout: float | None) -> "Future[bool]":
        self._check_process()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            entry = self._index.find(space, key)
            reason = None
            if user not in self._users:
                reason = "closed"
            elif entry is None:
                reason = "absent"
            elif entry.length != sum(view.nbytes for view in views):
                reason = "size"
            if entry is None or reason is not None:
                self._misses[reason] += 1
                return resolved(False)
            self._index.touch(entry)
            self._index.lease(entry)
        future = running()
        if (permit := self._reading.permit()) is None:
            self._end_get(future, entry, "tripped")
            return future

        def job(staging: Staging) -> None:
            self._end_get(future, entry, self._guarded(lambda: self._read(staging, entry, views, permit, deadline)))

        if not self._pool.submit_read(job):
            self._reading.give_back(permit)
            self._end_get(future, entry, "busy")
        return future

    def _end_get(self, future: "Future[bool]", entry: Entry, reason: str | None) -> None:
        with self._lock:
            self._index.release(entry)
            if reason is None:
                self._counts["hits"] += 1
                self._counts["hit_bytes"] += entry.length
            else:
                self._misses[reason] += 1
        future.set_result(reason is None)

    def _guarded(self, operation: Callable[[], str | None]) -> str | None:
        """The reason why the operation failed, or None. A cache must not take its user down."""
        try:
            return operation()
        except OSError as error:
            logger.info("%s: %s", self._path, error)
            return "io_error"
        except Exception:
            logger.exception("%s: unexpected", self._path)
            return "internal"

    def contains(self, space: Space, key: bytes) -> bool:
        with self._lock:
            found = self._index.find(space, key) is not None
        return found and self._reading.willing

    def touch(self, space: Space, key: bytes) -> None:
        with self._lock:
            if (entry := self._index.find(space, key)) is not None:
                self._index.touch(entry)

    def delete(self, space: Space, key: bytes) -> None:
        with self._lock:
            if (entry := self._index.find(space, key)) is not None:
                self._index.remove(entry)

    def stats(self, space: Space, quota: int | None) -> StoreStats:
        with self._lock:
            return StoreStats(
                puts=self._counts["puts"],
                put_bytes=self._counts["put_bytes"],
                refused=dict(self._refused),
                hits=self._counts["hits"],
                hit_bytes=self._counts["hit_bytes"],
                misses=dict(self._misses),
                left_alone=self._directory.left_alone,
                forged_headers=self._counts["forged"],
                evictions=self._index.evictions,
                records=self._index.count(space),
                used_bytes=self._index.used_bytes(space),
                quota_bytes=quota,
                capacity_bytes=sum(segment.nbytes for segment in self._directory.owned),
                retired_slots=self._index.retired,
                recovered_records=self._counts["recovered"],
                recovery_seconds=self._recovery_seconds,
                read_state=self._reading.state,
                write_state=self._writing.state,
                failed_jobs=self._pool.failed_jobs,
            )

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("the store was opened before this process was forked: open it again here")

    # On a worker thread

    def _write(
        self, staging: Staging, space: Space, quota: int | None, key: bytes, views: list[Bytes], permit: Permit
    ) -> str | None:
        """Why the record was not written, or None. Raises OSError."""
        with self._writing.attempt(permit):
            if permit.probe:
                self._revive()
                if not self._directory.owned:
                    raise OSError(errno.ENOSPC, "no segment could be allocated", str(self._path))
            transfer = staging.transfer(views)
            slot = self._place(self._options.slot_payload(transfer.nbytes), space, quota)
            if slot is None:
                return "full"
            entry = None
            try:
                with self._lock:
                    sequence = self._next_sequence()
                entry = write_record(slot, space, key, sequence, transfer, staging, self._mac_key)
            except OSError as error:
                self._blame(slot, error, permit)
                raise
            finally:
                with self._lock:
                    self._index.give(slot, entry)
                    if entry is not None:
                        self._counts["put_bytes"] += entry.length
                        if quota is not None:
                            self._index.evict_for_quota(space, quota)
        if permit.probe:
            with self._lock:
                self._index.forgive()
        return None

    def _blame(self, slot: Slot, error: OSError, permit: Permit) -> None:
        """A slot is only blamed for what may be its own fault."""
        if error.errno == errno.EIO and not permit.probe:
            with self._lock:
                self._index.strike(slot)

    def _read(
        self, staging: Staging, entry: Entry, views: list[Bytes], permit: Permit, deadline: float | None
    ) -> str | None:
        """The kind of miss, or None. Raises OSError."""
        if deadline is not None and time.monotonic() > deadline:
            self._reading.give_back(permit)
            return "late"
        try:
            with self._reading.attempt(permit):
                if permit.probe:
                    self._revive()
                transfer = staging.transfer(views)
                count = read_record(entry, transfer, staging)
        except OSError as error:
            self._blame(entry.slot, error, permit)
            if error.errno == errno.EIO and not permit.probe:
                self._forget(entry)
            raise
        reason = damage(entry, transfer, staging, count, self._mac_key)
        if reason is None:
            transfer.deliver()
        else:
            logger.info("%s, slot %d: %s", entry.slot.segment.file.path, entry.slot.number, reason)
            if reason != "forged":  # that is not the slot's fault
                with self._lock:
                    self._index.strike(entry.slot)
            self._forget(entry)
        return reason

    def _next_sequence(self) -> int:
        """From the clock, not from the records that were found: a number on the disk is anybody's, and there would be none
        after the greatest."""
        self._sequence = max(self._sequence + 1, time.time_ns())
        return self._sequence

    def _forget(self, entry: Entry) -> None:
        with self._lock:
            self._index.remove(entry)

    def _place(self, payload: int, space: Space, quota: int | None) -> Slot | None:
        """A slot to write to: free, in a segment not cut yet, in one of another size that is unused for long, or that of
        the record of this size that is unused for longest."""
        with self._lock:
            if quota is not None:
                self._index.evict_for_quota(space, quota - payload - ALIGNMENT)
            if (slot := self._index.take(payload)) is not None:
                return slot
        with self._files_lock:
            with self._lock:
                if (slot := self._index.take(payload)) is not None:
                    return slot
                segment = self._uncut.pop() if self._uncut else self._index.claim(self._directory.owned, payload)
            if segment is None:
                with self._lock:
                    return self._index.take(payload) if self._index.evict_from_size(payload) else None
            try:
                segment.cut(payload)
            except OSError:
                self._uncut.append(segment)
                raise
            with self._lock:
                self._index.add_segment(segment)
                return self._index.take(payload)

    # Files

    def refresh(self) -> None:
        """Raises OSError."""
        self._check_process()
        with self._scan_lock:
            for segment in self._directory.foreign:
                self._drop(segment)
            self._populate()

    def _revive(self) -> None:
        """Before a probe: files that were replaced while the medium was away are opened anew."""
        with self._scan_lock:
            for segment in self._directory.replaced:
                self._drop(segment)
            self._populate()

    def _drop(self, segment: Segment) -> None:
        with self._files_lock, self._lock:
            self._directory.drop(segment)
            self._index.drop_segment(segment)
            if segment in self._uncut:
                self._uncut.remove(segment)

    def _populate(self) -> None:
        """Raises OSError if the directory cannot be used."""
        start = time.perf_counter()
        with self._files_lock:
            fresh = self._directory.populate()
        records, forged = find_records(fresh, self._options.workers, self._mac_key)
        taken: dict[Segment, list[int]] = {segment: [] for segment in fresh}
        for entry in records:
            taken[entry.slot.segment].append(entry.slot.number)
        with self._lock:
            for segment, numbers in taken.items():
                segment.pins -= 1
                if segment.format is not None:
                    self._index.add_segment(segment, numbers)
                elif segment.owned:
                    self._uncut.append(segment)
            for entry in records:
                other = self._index.find(entry.space, entry.key)
                if entry.slot.owned or other is None or not other.slot.owned:
                    self._index.add(entry)
            self._counts["recovered"] += len(records)
            self._counts["forged"] += forged
            self._recovery_seconds += time.perf_counter() - start

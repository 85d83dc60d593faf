"""What stores on a server share: the records, and never letting the server's trouble through."""

import logging
import threading
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from ..secret_keys import check_secret
from .base import Buffer, Store, StoreStats, check_key, running
from .breaker import Breaker, Permit
from .buffers import Bytes, Staging, as_bytes
from .record import HEADER_BYTES, VERSION, Header, Space, flaw_of_payload, read_header, require_xxhash
from .workers import WorkerPool

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteOptions:
    """`slow_seconds` is also how long one request to the server may take, where the client can limit it. `mac_key`: a
    secret of 16 to 64 bytes with which records are signed; those of anybody else are misses."""

    workers: int = 8
    max_writers: int = 4
    max_waiting_reads: int = 1024
    max_pending_write_bytes: int = 256 << 20
    failures_to_trip: int = 3
    slow_seconds: float = 5.0
    backoff: float = 0.5
    max_backoff: float = 30.0
    close_seconds: float = 30.0
    mac_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_secret("mac_key", self.mac_key)


class RemoteStore(Store):
    """A record is one value: the header of the slab store's records, then the payload. Its name is made of the digests of
    namespace and layout and of the key, and all three are verified in the header as well.

    What is evicted and when is the server's business. Subclasses say how to send and fetch; their methods raise OSError
    for whatever goes wrong.
    """

    def __init__(self, where: str, *, namespace: bytes, layout: bytes, options: RemoteOptions | None) -> None:
        require_xxhash()
        self._where = where
        self._options = options = options or RemoteOptions()
        self._space = Space.of(namespace, layout)
        self._mac_key = options.mac_key or b""
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._closed = False
        limits = (options.failures_to_trip, options.slow_seconds, options.backoff, options.max_backoff)
        self._reading = Breaker(f"reads from {where}", *limits)
        self._writing = Breaker(f"writes to {where}", *limits)
        self._pool = WorkerPool(
            "swa-store",
            options.workers,
            options.max_writers,
            options.max_waiting_reads,
            options.max_pending_write_bytes,
        )

    # On the server

    @abstractmethod
    def _send(self, name: str, header: bytes, payload: Sequence[Bytes]) -> str | None:
        """Stores a value; None, or why the server refused."""

    @abstractmethod
    def _fetch(self, name: str, nbytes: int) -> Buffer | str:
        """The value of exactly that length; or the kind of miss, absent or size."""

    @abstractmethod
    def _exists(self, name: str) -> bool: ...

    @abstractmethod
    def _touch(self, name: str) -> None: ...

    @abstractmethod
    def _remove(self, name: str) -> None: ...

    @abstractmethod
    def _disconnect(self) -> None: ...

    # Requests

    def put(self, key: bytes, buffers: Sequence[Buffer]) -> "Future[bool]":
        check_key(key)
        views = as_bytes(buffers)
        future = running()

        def job(staging: Staging) -> None:
            self._end_put(future, self._guarded(lambda: self._put(key, views, permit)))

        if self._closed:
            self._end_put(future, "closed")
        elif (permit := self._writing.permit()) is None:
            self._end_put(future, "tripped")
        elif not self._pool.submit_write(job, sum(view.nbytes for view in views)):
            self._writing.give_back(permit)
            self._end_put(future, "busy")
        return future

    def get(self, key: bytes, into: Sequence[Buffer], timeout: float | None = None) -> "Future[bool]":
        check_key(key)
        views = as_bytes(into, writable=True)
        deadline = None if timeout is None else time.monotonic() + timeout
        future = running()

        def job(staging: Staging) -> None:
            self._end_get(future, views, self._guarded(lambda: self._get(key, views, permit, deadline)))

        if self._closed:
            self._end_get(future, views, "closed")
        elif (permit := self._reading.permit()) is None:
            self._end_get(future, views, "tripped")
        elif not self._pool.submit_read(job):
            self._reading.give_back(permit)
            self._end_get(future, views, "busy")
        return future

    def contains(self, key: bytes) -> bool:
        """Asks the server, and waits for its answer."""
        name = self._name(check_key(key))
        return self._asked(lambda: self._exists(name)) is True

    def touch(self, key: bytes) -> None:
        name = self._name(check_key(key))

        def job(staging: Staging) -> None:
            self._asked(lambda: self._touch(name))

        self._pool.submit_read(job)

    def delete(self, key: bytes) -> None:
        """Asks the server, and waits for its answer."""
        name = self._name(check_key(key))
        self._asked(lambda: self._remove(name))

    def stats(self) -> StoreStats:
        with self._lock:
            return StoreStats(
                puts=self._counts["puts"],
                put_bytes=self._counts["put_bytes"],
                refused=dict(self._refused),
                hits=self._counts["hits"],
                hit_bytes=self._counts["hit_bytes"],
                misses=dict(self._misses),
                read_state=self._reading.state,
                write_state=self._writing.state,
            )

    def close(self) -> None:
        with self._lock:
            first, self._closed = not self._closed, True
        if first and self._pool.close(self._options.close_seconds):
            self._disconnect()

    def _name(self, key: bytes) -> str:
        return f"swa{VERSION}-{self._space.namespace.hex()}-{self._space.layout.hex()}-{key.hex()}"

    # On a worker thread

    def _put(self, key: bytes, views: list[Bytes], permit: Permit) -> str | None:
        name = self._name(key)
        with self._writing.attempt(permit):
            if self._exists(name):
                self._touch(name)
                return None
            nbytes = sum(view.nbytes for view in views)
            header = Header.of(self._space, key, views, self._mac_key)
            reason = self._send(name, header.pack(self._mac_key), views)
        if reason is None:
            with self._lock:
                self._counts["put_bytes"] += nbytes
        return reason

    def _get(self, key: bytes, views: list[Bytes], permit: Permit, deadline: float | None) -> str | None:
        if deadline is not None and time.monotonic() > deadline:
            self._reading.give_back(permit)
            return "late"
        name = self._name(key)
        with self._reading.attempt(permit):
            value = self._fetch(name, HEADER_BYTES + sum(view.nbytes for view in views))
        if isinstance(value, str):
            return value
        data = np.frombuffer(value, np.uint8)
        reason = self._damage(key, data)
        if reason is not None:
            logger.info("%s, %s: %s", self._where, name, reason)
            with suppress(OSError):
                self._remove(name)  # or it could not be put again
            return reason
        start = HEADER_BYTES
        for view in views:
            view[:] = data[start : start + view.nbytes]
            start += view.nbytes
        return None

    def _damage(self, key: bytes, data: Bytes) -> str | None:
        header = read_header(data[:HEADER_BYTES].tobytes(), self._mac_key)
        if isinstance(header, str):
            return header
        if (header.space, header.key) != (self._space, key):
            return "foreign"
        return flaw_of_payload(header, [data[HEADER_BYTES:]], self._mac_key)

    def _guarded(self, operation: Callable[[], str | None]) -> str | None:
        """The reason why the operation failed, or None. A cache must not take its user down."""
        try:
            return operation()
        except OSError as error:
            logger.info("%s: %s", self._where, error)
            return "io_error"
        except Exception:
            logger.exception("%s: unexpected", self._where)
            return "internal"

    def _asked(self, question: Callable[[], bool | None]) -> bool | None:
        """The answer, or None if there was none to be had."""
        permit = None if self._closed else self._reading.permit()
        if permit is None:
            return None
        try:
            with self._reading.attempt(permit):
                return question()
        except OSError as error:
            logger.info("%s: %s", self._where, error)
            return None

    def _end_put(self, future: "Future[bool]", reason: str | None) -> None:
        with self._lock:
            if reason is None:
                self._counts["puts"] += 1
            else:
                self._refused[reason] += 1
        future.set_result(reason is None)

    def _end_get(self, future: "Future[bool]", views: list[Bytes], reason: str | None) -> None:
        with self._lock:
            if reason is None:
                self._counts["hits"] += 1
                self._counts["hit_bytes"] += sum(view.nbytes for view in views)
            else:
                self._misses[reason] += 1
        future.set_result(reason is None)

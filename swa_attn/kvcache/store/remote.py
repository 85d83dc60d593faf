"""What stores on a server share: the records, and never letting the server's trouble through."""

import logging
import threading
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, fields

import numpy as np

from ..secret_keys import check_secret
from .base import Buffer, Store, StoreStats, check_key, running
from .breaker import Breaker, Permit
from .buffers import Bytes, Staging, as_bytes
from .record import HEADER_BYTES, VERSION, Header, Space, flaw_of_payload, read_header, require_xxhash
from .watch import Request, Watch
from .workers import Job, WorkerPool, describe

logger = logging.getLogger(__name__)

_GRACE = 0.5  # seconds after `slow_seconds` in which a request may still end by itself


class BadReply(OSError):
    """The server answered with something that is no answer to the request."""


@dataclass(frozen=True)
class RemoteOptions:
    """`slow_seconds` is how long one get or put may take from its beginning to its end, whatever it consists of.
    `queue_seconds` is how long it may wait for its beginning. `ask_seconds` is how long `contains` and `leading` hold
    their caller; `put`, `get`, `touch` and `delete` do not hold theirs. `mac_key`: a secret of 16 to 64 bytes with which
    records are signed; those of anybody else are misses."""

    workers: int = 8
    max_writers: int = 4
    max_waiting_reads: int = 1024
    max_waiting_errands: int = 4096  # touches and deletes
    max_pending_write_bytes: int = 256 << 20
    failures_to_trip: int = 3
    slow_seconds: float = 5.0
    ask_seconds: float = 0.25
    queue_seconds: float = 30.0
    backoff: float = 0.5
    max_backoff: float = 30.0
    close_seconds: float = 30.0
    mac_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_secret("RemoteOptions: mac_key", self.mac_key)
        for limit in fields(self):
            value = getattr(self, limit.name)
            if limit.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{limit.name}: expected an integer of at least 1, got {value!r}")
            if limit.type is float and not (isinstance(value, int | float) and 0 < value <= threading.TIMEOUT_MAX):
                raise ValueError(f"{limit.name}: expected a positive, finite number, got {value!r}")


class RemoteStore(Store):
    """A record is one value: the header of the slab store's records, then the payload. Its name is made of the digests of
    namespace and layout and of the key, and all three are verified in the header as well.

    What is evicted and when is the server's business. Subclasses say how to send and fetch, by the time `until` of
    `time.monotonic` where their client can be held to it; whatever they raise is a miss or a refusal.

    Nothing here waits for the server on the caller's thread but `contains` and `leading`, for `ask_seconds` at most.
    Every future is done in time, also when a client's call never returns: see `Watch`.
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
        self._unanswered: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._leaving: set[str] = set()  # names whose deletion is under way
        self._closed = False
        self._reading = self._breaker(f"reads from {where}", options.slow_seconds)
        self._writing = self._breaker(f"writes to {where}", options.slow_seconds)
        self._asking = self._breaker(f"questions to {where}", options.ask_seconds)
        self._watch = Watch("swa-store-watch")
        # Questions are this pool's reads, errands its writes: one thread is always left for a question.
        self._askers = WorkerPool("swa-store-ask", 2, 1, options.max_waiting_reads, options.max_waiting_errands)
        self._pool = WorkerPool(
            "swa-store",
            options.workers,
            options.max_writers,
            options.max_waiting_reads,
            options.max_pending_write_bytes,
        )

    def _breaker(self, name: str, slow_seconds: float) -> Breaker:
        options = self._options
        return Breaker(name, options.failures_to_trip, slow_seconds, options.backoff, options.max_backoff)

    # On the server

    @abstractmethod
    def _send(self, name: str, header: bytes, payload: Sequence[Bytes], until: float) -> str | None:
        """Stores a value; None, or why the server refused."""

    @abstractmethod
    def _fetch(self, name: str, nbytes: int, until: float) -> Buffer | str:
        """The value of exactly that length; or the kind of miss, absent or size. Takes in no larger one."""

    @abstractmethod
    def _exists(self, name: str, until: float) -> bool: ...

    @abstractmethod
    def _touch(self, name: str, until: float) -> bool:
        """Whether there is something to touch."""

    @abstractmethod
    def _remove(self, name: str, until: float) -> None: ...

    @abstractmethod
    def _disconnect(self) -> None: ...

    # Requests

    def put(self, key: bytes, buffers: Sequence[Buffer]) -> "Future[bool]":
        check_key(key)
        views = as_bytes(buffers)
        nbytes = sum(view.nbytes for view in views)
        future = running()
        self._accept(
            Request(lambda reason: self._end_put(future, reason)),
            self._writing,
            lambda permit: self._put(key, views, permit),
            lambda job: self._pool.submit_write(job, nbytes),
        )
        return future

    def get(self, key: bytes, into: Sequence[Buffer], timeout: float | None = None) -> "Future[bool]":
        check_key(key)
        views = as_bytes(into, writable=True)
        future = running()
        self._accept(
            Request(lambda outcome: self._end_get(future, views, outcome)),
            self._reading,
            lambda permit: self._get(key, sum(view.nbytes for view in views), permit),
            self._pool.submit_read,
            timeout,
        )
        return future

    def contains(self, key: bytes) -> bool:
        return self.leading([key]) == 1

    def leading(self, keys: Sequence[bytes]) -> int:
        """Asks the server, and waits for its answers for `ask_seconds` at most: what it has not said by then counts as
        not there."""
        names = [self._name(check_key(key)) for key in keys]
        found: list[str] = []
        answered = threading.Event()

        def end(reason: object) -> None:
            self._end_question(reason)
            answered.set()

        request = Request(end)
        question = lambda permit: self._look(request, names, found, permit)  # noqa: E731
        self._accept(request, self._asking, question, self._askers.submit_read)
        if not answered.wait(self._options.ask_seconds):
            request.finish("late")
        return len(found)

    def touch(self, key: bytes) -> None:
        """Tells the server at some later time."""
        name = self._name(check_key(key))
        self._errand(Request(self._end_question), lambda until: self._touch(name, until))

    def delete(self, key: bytes) -> None:
        """Tells the server at some later time; here the record is gone from now on, until it is put again."""
        name = self._name(check_key(key))
        with self._lock:
            self._leaving.add(name)
        self._errand(Request(lambda reason: self._end_delete(name, reason)), lambda until: self._delete(name, until))

    def _errand(self, request: Request, errand: Callable[[float], object]) -> None:
        def operation(permit: Permit) -> None:
            with self._reading.attempt(permit):
                errand(self._until())

        self._accept(request, self._reading, operation, lambda job: self._askers.submit_write(job, 1))

    def _accept(
        self,
        request: Request,
        breaker: Breaker,
        operation: Callable[[Permit], object],
        submit: Callable[[Job], bool],
        timeout: float | None = None,
    ) -> None:
        """Has the operation carried out by a thread, or ends the request. Its outcome is the reason why it failed, or
        whatever else the operation gives."""

        def job(staging: Staging) -> None:
            if self._watch.begin(request, self._options.slow_seconds + _GRACE):
                request.finish(self._guarded(lambda: operation(permit)))
                self._watch.forget(request)
            else:
                breaker.give_back(permit)

        if self._closed:
            request.finish("closed")
        elif (permit := breaker.permit()) is None:
            request.finish("tripped")
        else:
            self._watch.expect(request, self._options.queue_seconds if timeout is None else timeout)
            if not submit(job):
                breaker.give_back(permit)
                self._watch.forget(request)
                request.finish("busy")

    def stats(self) -> StoreStats:
        with self._lock:
            return StoreStats(
                puts=self._counts["puts"],
                put_bytes=self._counts["put_bytes"],
                refused=dict(self._refused),
                hits=self._counts["hits"],
                hit_bytes=self._counts["hit_bytes"],
                misses=dict(self._misses),
                unanswered=dict(self._unanswered),
                read_state=self._reading.state,
                write_state=self._writing.state,
                ask_state=self._asking.state,
                failed_jobs=self._pool.failed_jobs + self._askers.failed_jobs,
            )

    def close(self) -> None:
        with self._lock:
            first, self._closed = not self._closed, True
        if not first:
            return
        end = time.monotonic() + self._options.close_seconds
        ended = [pool.close(max(0.0, end - time.monotonic())) for pool in (self._pool, self._askers)]
        self._watch.close()
        if all(ended):
            self._disconnect()

    def _name(self, key: bytes) -> str:
        return f"swa{VERSION}-{self._space.namespace.hex()}-{self._space.layout.hex()}-{key.hex()}"

    # On a worker thread

    def _until(self) -> float:
        return time.monotonic() + self._options.slow_seconds

    def _put(self, key: bytes, views: list[Bytes], permit: Permit) -> str | None:
        name = self._name(key)
        with self._lock:
            self._leaving.discard(name)  # not before: a put that is refused takes no deletion back
        with self._writing.attempt(permit):
            until = self._until()
            if self._touch(name, until):
                return None
            nbytes = sum(view.nbytes for view in views)
            header = Header.of(self._space, key, views, self._mac_key)
            reason = self._send(name, header.pack(self._mac_key), views, until)
        if reason is None:
            with self._lock:
                self._counts["put_bytes"] += nbytes
        return reason

    def _get(self, key: bytes, nbytes: int, permit: Permit) -> Bytes | str:
        """The payload, or the kind of miss."""
        name = self._name(key)
        if self._is_leaving(name):
            self._reading.give_back(permit)
            return "absent"
        with self._reading.attempt(permit):
            until = self._until()
            value = self._fetch(name, HEADER_BYTES + nbytes, until)
        if isinstance(value, str):
            return value
        data = np.frombuffer(value, np.uint8)
        reason = self._damage(key, data)
        if reason is None:
            return data[HEADER_BYTES:]
        logger.info("%s, %s: %s", self._where, name, reason)
        self._guarded(lambda: self._remove(name, until))  # or it could not be put again
        return reason

    def _look(self, request: Request, names: list[str], found: list[str], permit: Permit) -> None:
        """Adds to `found` the leading names that are there, until nobody waits for more."""
        with self._asking.attempt(permit):
            until = self._until()
            for name in names:
                if request.ended or self._is_leaving(name) or not self._exists(name, until):
                    return
                found.append(name)

    def _delete(self, name: str, until: float) -> None:
        if self._is_leaving(name):  # or it was put again
            self._remove(name, until)

    def _is_leaving(self, name: str) -> bool:
        with self._lock:
            return name in self._leaving

    def _damage(self, key: bytes, data: Bytes) -> str | None:
        header = read_header(data[:HEADER_BYTES].tobytes(), self._mac_key)
        if isinstance(header, str):
            return header
        if (header.space, header.key) != (self._space, key):
            return "foreign"
        return flaw_of_payload(header, [data[HEADER_BYTES:]], self._mac_key)

    def _guarded(self, operation: Callable[[], object]) -> object:
        """The operation's outcome, or the reason why it failed. A cache must not take its user down."""
        try:
            return operation()
        except OSError as error:
            logger.info("%s: %s", self._where, error)
            return (
                "bad_reply"
                if isinstance(error, BadReply)
                else "slow"
                if isinstance(error, TimeoutError)
                else "io_error"
            )
        except BaseException as error:
            logger.error("%s: unexpected %s", self._where, describe(error))
            return "internal"

    # The ends of requests: `outcome` is a reason, or all went well

    def _end_put(self, future: "Future[bool]", outcome: object) -> None:
        with self._lock:
            if outcome is None:
                self._counts["puts"] += 1
            else:
                self._refused[str(outcome)] += 1
        future.set_result(outcome is None)

    def _end_get(self, future: "Future[bool]", views: list[Bytes], outcome: object) -> None:
        hit = isinstance(outcome, np.ndarray)
        if hit:
            start = 0
            for view in views:
                view[:] = outcome[start : start + view.nbytes]
                start += view.nbytes
        with self._lock:
            if hit:
                self._counts["hits"] += 1
                self._counts["hit_bytes"] += outcome.nbytes
            else:
                self._misses[str(outcome)] += 1
        future.set_result(hit)

    def _end_delete(self, name: str, outcome: object) -> None:
        with self._lock:
            self._leaving.discard(name)
        self._end_question(outcome)

    def _end_question(self, outcome: object) -> None:
        if outcome is not None:
            with self._lock:
                self._unanswered[str(outcome)] += 1

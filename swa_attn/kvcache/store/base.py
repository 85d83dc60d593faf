"""What a tier below host memory offers: blobs by key, asked for without waiting, that are right or not there."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from torch import Tensor

Buffer = bytes | bytearray | memoryview | np.ndarray | Tensor

MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 32


@dataclass(frozen=True)
class StoreStats:
    """Counts since the store was opened, and what it holds now.

    `misses` says why a `get` gave False:

    absent      no such record
    size        the record's payload has another length than the buffers
    corrupt     header or payload failed its checksum (torn, flipped, overwritten while it was read)
    foreign     a valid header of another record: its slot was reused by another process, or the write went astray
    forged      undamaged, but not signed with this store's `mac_key`
    truncated   the file ended before the record did
    io_error    the system call failed, or the server answered with an error
    bad_reply   the server answered with something that is no answer
    slow        the server did not answer in time
    late        the timeout passed before the read began
    busy        too many reads were waiting
    tripped     the breaker of reads is open
    closed      the store is closed
    internal    an unexpected exception, logged

    `refused` says why a `put` gave False: full (no slot could be freed), too_large, busy, tripped, read_only, io_error,
    bad_reply, slow, late, closed, internal.

    `unanswered` says why a server did not get or not answer a `contains`, `leading`, `touch` or `delete`: late (no answer
    within `ask_seconds`, or it had to wait for too long), and as above.

    `left_alone` says which files of a segment's name a slab store neither reads nor writes, as of its last look:

    not_a_file  a symbolic link, a directory, a FIFO, a device
    links       the file has another name as well
    untrusted   the file belongs to another user, or others may write to it, and there is no `mac_key`
    foreign     its beginning is neither a segment's nor empty
    version     a segment of a later version of this store
    bounds      a segment whose numbers make no sense: larger than the file and than what this store would make, or cut
                into slots that no store makes
    many        one of more files than a store opens
    unreadable  the system call failed
    """

    puts: int = 0  # records written, or found to be there already
    put_bytes: int = 0  # payload written
    refused: dict[str, int] = field(default_factory=dict)
    hits: int = 0
    hit_bytes: int = 0
    misses: dict[str, int] = field(default_factory=dict)
    read_state: str = "closed"  # of the breakers: closed (healthy), open (tripped), half_open (one operation tries)
    write_state: str = "closed"
    failed_jobs: int = 0  # exceptions that reached a worker thread, logged: each is a fault of this package
    # Of stores on a server alone:
    unanswered: dict[str, int] = field(default_factory=dict)
    ask_state: str = "closed"  # of the breaker of questions
    # Of the slab store alone:
    left_alone: dict[str, int] = field(default_factory=dict)
    forged_headers: int = 0  # found in segments as they were opened, and ignored
    evictions: int = 0
    records: int = 0  # of this namespace and layout
    used_bytes: int = 0  # of this namespace and layout, with headers and padding
    quota_bytes: int | None = None
    capacity_bytes: int = 0  # of the segments that this process writes to
    retired_slots: int = 0  # slots that failed twice and are not used again
    recovered_records: int = 0
    recovery_seconds: float = 0.0


class Store(ABC):
    """Records of one namespace and layout. All methods may be called from any thread.

    A key is 16 to 32 bytes that name the contents: putting a key that is there writes nothing. Buffers are contiguous
    CPU memory (bytes-like, NumPy, torch tensors, pinned or not); a record's payload is their concatenation. They belong
    to the store until the future is done. Memory from `aligned_empty` is read and written without a copy.

    A wrong argument raises ValueError or TypeError at the call. Nothing that happens to the medium ever raises: a put
    that failed gives False, a get that failed is a miss.
    """

    @abstractmethod
    def put(self, key: bytes, buffers: Sequence[Buffer]) -> "Future[bool]":
        """Stores a record. True once it can be read back, False if it was refused or failed."""

    @abstractmethod
    def get(self, key: bytes, into: Sequence[Buffer], timeout: float | None = None) -> "Future[bool]":
        """Fills the buffers. True if they hold exactly what was put, verified; False for a miss, and then their
        contents are undefined. A read that has not begun `timeout` seconds after the call is a miss."""

    @abstractmethod
    def contains(self, key: bytes) -> bool:
        """Whether a get would find a record; reading it may still fail its verification."""

    def leading(self, keys: Sequence[bytes]) -> int:
        """How many of the keys `contains` finds before the first that it does not."""
        return next((i for i, key in enumerate(keys) if not self.contains(key)), len(keys))

    @abstractmethod
    def touch(self, key: bytes) -> None:
        """Makes the record the most recently used, for instance because a tier above was hit."""

    @abstractmethod
    def delete(self, key: bytes) -> None:
        """Forgets the record."""

    @abstractmethod
    def stats(self) -> StoreStats: ...

    @abstractmethod
    def close(self) -> None:
        """Finishes what was submitted and releases threads and files. Later calls give misses. May be called twice."""

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_key(key: bytes) -> bytes:
    if not isinstance(key, bytes) or not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        given = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
        raise ValueError(f"key: expected {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes, got {given}")
    return key


def resolved(value: bool) -> "Future[bool]":
    future: Future[bool] = Future()
    future.set_result(value)
    return future


def running() -> "Future[bool]":
    """A future that cannot be cancelled: buffers are in use until it is done."""
    future: Future[bool] = Future()
    future.set_running_or_notify_cancel()
    return future

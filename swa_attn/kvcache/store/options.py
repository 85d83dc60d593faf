"""How a slab store is sized and when it gives up on its disk."""

from dataclasses import dataclass, field

from ..secret_keys import check_secret
from .buffers import ALIGNMENT, round_up

_MIN_PAYLOAD = 64 << 10
_STEPS_PER_DOUBLING = 8


@dataclass(frozen=True)
class SlabOptions:
    """`capacity_bytes` is what this process may own in the directory, in files of `segment_bytes`, all preallocated when
    the store is opened. `size_classes` are the payload sizes of slots; without them slots come in eight sizes per
    doubling. Give the sizes of your pages, and nothing is wasted. `mac_key`: a secret of 16 to 64 bytes with which records
    are signed; those of anybody else are misses, and segments that others may write to are read then."""

    capacity_bytes: int
    segment_bytes: int = 1 << 30
    size_classes: tuple[int, ...] | None = None
    workers: int = 8
    max_writers: int = 4
    max_waiting_reads: int = 1024
    max_pending_write_bytes: int = 256 << 20
    failures_to_trip: int = 3
    slow_seconds: float = 5.0
    backoff: float = 0.5
    max_backoff: float = 30.0
    close_seconds: float = 30.0
    direct: bool = True  # O_DIRECT, where the file system has it
    read_only: bool = False
    mac_key: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_secret("SlabOptions: mac_key", self.mac_key)
        for name in ("capacity_bytes", "segment_bytes", "workers", "max_writers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.segment_bytes % ALIGNMENT:
            raise ValueError(f"segment_bytes: expected a multiple of {ALIGNMENT}, got {self.segment_bytes}")
        largest = self.segment_bytes - 2 * ALIGNMENT  # superblock and header
        sizes = (_MIN_PAYLOAD,) if self.size_classes is None else self.size_classes
        if not sizes or min(sizes) < 1 or max(sizes) > largest:
            raise ValueError(f"size_classes: expected sizes from 1 to {largest} (a segment with one slot), got {sizes}")
        if self.capacity_bytes < self.segment_bytes and not self.read_only:
            message = f"expected at least one segment of {self.segment_bytes}, got {self.capacity_bytes}"
            raise ValueError(f"capacity_bytes: {message}")

    @property
    def largest_segment(self) -> int:
        """Bytes of the largest file that this process would take over."""
        return max(self.segment_bytes, self.capacity_bytes)

    def slot_payload(self, nbytes: int) -> int | None:
        """The payload size of the slots for records of `nbytes`; None if they are too large for a segment."""
        if self.size_classes is not None:
            payload = min((round_up(size) for size in self.size_classes if size >= nbytes), default=None)
        elif nbytes <= _MIN_PAYLOAD:
            payload = _MIN_PAYLOAD
        else:
            payload = round_up(nbytes, max(ALIGNMENT, (1 << (nbytes - 1).bit_length() - 1) // _STEPS_PER_DOUBLING))
        if payload is None or payload > self.segment_bytes - 2 * ALIGNMENT:
            return None
        return payload

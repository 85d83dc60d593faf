"""Finds the records of segments by reading the header of every slot."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from .buffers import ALIGNMENT, aligned_empty
from .index import Entry, Slot
from .record import HEADER_BYTES, Header
from .segment import Segment

_SLOTS_PER_TASK = 128


def find_records(segments: Iterable[Segment], workers: int) -> list[Entry]:
    """Oldest first. Slots whose header cannot be read, is damaged or belongs elsewhere have no record."""
    tasks = [
        (segment, range(first, min(first + _SLOTS_PER_TASK, segment.format.num_slots)))
        for segment in segments
        if segment.format is not None
        for first in range(0, segment.format.num_slots, _SLOTS_PER_TASK)
    ]
    executor = ThreadPoolExecutor(workers, thread_name_prefix="swa-store-scan")
    try:
        found = [entry for entries in executor.map(lambda task: list(_scan(*task)), tasks) for entry in entries]
    finally:
        executor.shutdown(cancel_futures=True)
    return sorted(found, key=lambda entry: entry.sequence)


def _scan(segment: Segment, numbers: range) -> Iterator[Entry]:
    block = aligned_empty(ALIGNMENT)
    for number in numbers:
        slot = Slot(segment, segment.format, number)
        try:
            read = segment.file.read([block], slot.offset)
        except OSError:
            continue
        header = Header.unpack(block[:HEADER_BYTES].tobytes()) if read == ALIGNMENT else None
        if header is not None and belongs(header, slot):
            yield Entry(header.space, header.key, slot, header.length, header.sequence)


def belongs(header: Header, slot: Slot) -> bool:
    """Whether the header was written for this slot of this formatting."""
    here = (slot.format.identity, slot.number)
    return (header.segment, header.slot) == here and header.length <= slot.payload

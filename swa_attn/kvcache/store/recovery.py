"""Finds the records of segments by reading the header of every slot."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from .buffers import ALIGNMENT, aligned_empty
from .index import Entry, Slot
from .record import HEADER_BYTES, Header, read_header
from .segment import Segment

_SLOTS_PER_TASK = 128


def find_records(segments: Iterable[Segment], workers: int, mac_key: bytes) -> tuple[list[Entry], int]:
    """Oldest first; and how many slots had forged headers. Slots whose header cannot be read, is damaged or belongs
    elsewhere have no record."""
    tasks = [
        (segment, range(first, min(first + _SLOTS_PER_TASK, segment.format.num_slots)))
        for segment in segments
        if segment.format is not None
        for first in range(0, segment.format.num_slots, _SLOTS_PER_TASK)
    ]
    executor = ThreadPoolExecutor(workers, thread_name_prefix="swa-store-scan")
    try:
        found = [x for some in executor.map(lambda task: list(_scan(*task, mac_key)), tasks) for x in some]
    finally:
        executor.shutdown(cancel_futures=True)
    records = [entry for entry in found if entry is not None]
    return sorted(records, key=lambda entry: entry.sequence), len(found) - len(records)


def _scan(segment: Segment, numbers: range, mac_key: bytes) -> Iterator[Entry | None]:
    """None stands for a forged header."""
    block = aligned_empty(ALIGNMENT)
    for number in numbers:
        slot = Slot(segment, segment.format, number)
        try:
            read = segment.file.read([block], slot.offset)
        except OSError:
            continue
        header = read_header(block[:HEADER_BYTES].tobytes(), mac_key) if read == ALIGNMENT else "corrupt"
        if header == "forged":
            yield None
        elif isinstance(header, Header) and belongs(header, slot):
            yield Entry(header.space, header.key, slot, header.length, header.sequence)


def belongs(header: Header, slot: Slot) -> bool:
    """Whether the header was written for this slot of this formatting."""
    here = (slot.format.identity, slot.number)
    return (header.segment, header.slot) == here and 1 <= header.length <= slot.payload

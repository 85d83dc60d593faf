"""A record on its way into a slot, and out of it with everything verified."""

from .buffers import ALIGNMENT, Staging, Transfer
from .index import Entry, Slot
from .record import HEADER_BYTES, Header, Space, checksum
from .recovery import belongs


def write_record(slot: Slot, space: Space, key: bytes, sequence: int, transfer: Transfer, staging: Staging) -> Entry:
    """Header and payload in one system call. Raises OSError."""
    transfer.stage()
    digest = checksum(transfer.payload())
    header = Header(space, key, transfer.nbytes, digest, sequence, slot.format.identity, slot.number)
    staging.header[:HEADER_BYTES] = memoryview(header.pack())
    slot.segment.file.write([staging.header, *transfer.pieces], slot.offset)
    return Entry(space, key, slot, transfer.nbytes, sequence)


def read_record(entry: Entry, transfer: Transfer, staging: Staging) -> int:
    """Bytes read. Raises OSError."""
    return entry.slot.segment.file.read([staging.header, *transfer.pieces], entry.slot.offset)


def damage(entry: Entry, transfer: Transfer, staging: Staging, count: int) -> str | None:
    """What is wrong with the record that was read (see StoreStats.misses), or None."""
    if count < ALIGNMENT + transfer.nbytes:
        return "truncated"
    header = Header.unpack(staging.header[:HEADER_BYTES].tobytes())
    if header is None:
        return "corrupt"
    expected = (entry.space, entry.key, entry.sequence)
    if (header.space, header.key, header.sequence) != expected or not belongs(header, entry.slot):
        return "foreign"
    if header.length != transfer.nbytes or header.checksum != checksum(transfer.payload()):
        return "corrupt"
    return None

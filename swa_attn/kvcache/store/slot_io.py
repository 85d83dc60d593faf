"""A record on its way into a slot, and out of it with everything verified."""

from .buffers import ALIGNMENT, Staging, Transfer
from .index import Entry, Slot
from .record import HEADER_BYTES, Header, Space, flaw_of_payload, read_header
from .recovery import belongs


def write_record(
    slot: Slot, space: Space, key: bytes, sequence: int, transfer: Transfer, staging: Staging, mac_key: bytes
) -> Entry:
    """Header and payload in one system call. Raises OSError."""
    transfer.stage()
    header = Header.of(space, key, transfer.payload(), mac_key, sequence, slot.format.identity, slot.number)
    staging.header[:HEADER_BYTES] = memoryview(header.pack(mac_key))
    slot.segment.file.write([staging.header, *transfer.pieces], slot.offset)
    return Entry(space, key, slot, transfer.nbytes, sequence)


def read_record(entry: Entry, transfer: Transfer, staging: Staging) -> int:
    """Bytes read. Raises OSError."""
    return entry.slot.segment.file.read([staging.header, *transfer.pieces], entry.slot.offset)


def damage(entry: Entry, transfer: Transfer, staging: Staging, count: int, mac_key: bytes) -> str | None:
    """What is wrong with the record that was read (see StoreStats.misses), or None."""
    if count < ALIGNMENT + transfer.nbytes:
        return "truncated"
    header = read_header(staging.header[:HEADER_BYTES].tobytes(), mac_key)
    if isinstance(header, str):
        return header
    expected = (entry.space, entry.key, entry.sequence)
    if (header.space, header.key, header.sequence) != expected or not belongs(header, entry.slot):
        return "foreign"
    return flaw_of_payload(header, transfer.payload(), mac_key)

"""The header in front of every payload: what it is, where it belongs, the checksums of both, and who vouches for them."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from .base import MAX_KEY_BYTES, MIN_KEY_BYTES
from .buffers import Bytes
from .mac import MAC_BYTES, NO_MAC, sign, signed

try:
    import xxhash
except ModuleNotFoundError:
    xxhash = None

MAGIC = b"SWAKVREC"
VERSION = 2  # of the header and of what it names; records of another version are not found
# magic, version, slot, segment, sequence number, payload length, namespace, layout, length of the key, key, payload's
# checksum, payload's MAC; the MAC of all these follows, and the checksum of everything before it.
_FIELDS = struct.Struct("<8sII16sQQ32s32sB7x32s16s32s")
CHECKSUM_BYTES = 16
_MAC_END = _FIELDS.size + MAC_BYTES
HEADER_BYTES = _MAC_END + CHECKSUM_BYTES
NOWHERE = bytes(16)  # the segment of records that live in no slot
_HEADER, _PAYLOAD = b"swa record header", b"swa record payload"  # what is signed


def require_xxhash() -> None:
    if xxhash is None:
        raise ModuleNotFoundError("stores need xxhash for their checksums: pip install 'swa-attn[disk]'")


def checksum(views: Iterable[Bytes | bytes]) -> bytes:
    """128 bits over the concatenation. Finds damage, not forgery."""
    state = xxhash.xxh3_128()
    for view in views:
        state.update(view)
    return state.digest()


@dataclass(frozen=True)
class Space:
    """Digests of the namespace (whose contents are these) and the layout (how are they arranged): records of one space
    are invisible in every other."""

    namespace: bytes  # 32 bytes
    layout: bytes  # 32 bytes

    @classmethod
    def of(cls, namespace: bytes, layout: bytes) -> "Space":
        for name, value in (("namespace", namespace), ("layout", layout)):
            if not isinstance(value, bytes):
                raise TypeError(f"{name}: expected bytes, got {type(value).__name__}")
        return cls(blake2b(namespace, digest_size=32).digest(), blake2b(layout, digest_size=32).digest())


@dataclass(frozen=True)
class Header:
    space: Space
    key: bytes
    length: int  # bytes of payload
    checksum: bytes
    sequence: int = 0  # later writes have greater ones
    segment: bytes = NOWHERE  # identity of the segment's formatting, so that what an earlier one left is not a record
    slot: int = 0
    mac: bytes = NO_MAC  # of the payload

    @classmethod
    def of(cls, space: Space, key: bytes, payload: Sequence[Bytes], mac_key: bytes, *where: int | bytes) -> "Header":
        """`where`: sequence, segment and slot of a record that has a slot."""
        nbytes = sum(view.nbytes for view in payload)
        return cls(space, key, nbytes, checksum(payload), *where, mac=sign(mac_key, _PAYLOAD, payload))

    def pack(self, mac_key: bytes = b"") -> bytes:
        space, key = self.space, self.key.ljust(MAX_KEY_BYTES, b"\0")
        where = (MAGIC, VERSION, self.slot, self.segment, self.sequence, self.length)
        fields = _FIELDS.pack(*where, space.namespace, space.layout, len(self.key), key, self.checksum, self.mac)
        signed_fields = fields + sign(mac_key, _HEADER, [fields])
        return signed_fields + checksum([signed_fields])

    @classmethod
    def unpack(cls, data: bytes) -> "Header | None":
        """None unless `data` begins with an undamaged header of this version. Its numbers may still be anybody's."""
        fields = data[: _FIELDS.size]
        if len(data) < HEADER_BYTES or not fields.startswith(MAGIC):
            return None
        if checksum([data[:_MAC_END]]) != data[_MAC_END:HEADER_BYTES]:
            return None
        _, version, slot, segment, sequence, length, namespace, layout, key_bytes, key, *sums = _FIELDS.unpack(fields)
        if version != VERSION or not MIN_KEY_BYTES <= key_bytes <= MAX_KEY_BYTES:
            return None
        digest, mac = sums
        return cls(Space(namespace, layout), key[:key_bytes], length, digest, sequence, segment, slot, mac)


def read_header(data: bytes, mac_key: bytes) -> Header | str:
    """The header that `data` begins with, or why it is none: see `StoreStats.misses`."""
    header = Header.unpack(data)
    if header is None:
        return "corrupt"
    return header if signed(mac_key, _HEADER, [data[: _FIELDS.size]], data[_FIELDS.size : _MAC_END]) else "forged"


def flaw_of_payload(header: Header, payload: Sequence[Bytes], mac_key: bytes) -> str | None:
    """Why this is not the header's payload, or None."""
    if header.length != sum(view.nbytes for view in payload) or header.checksum != checksum(payload):
        return "corrupt"
    return None if signed(mac_key, _PAYLOAD, payload, header.mac) else "forged"

"""The header in front of every payload: what it is, where it belongs, and the checksums of both."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from .buffers import Bytes

try:
    import xxhash
except ModuleNotFoundError:
    xxhash = None

MAGIC = b"SWAKVREC"
VERSION = 1
# magic, version, slot, segment, sequence number, payload length, namespace, layout, length of the key, key, payload's
# checksum; the checksum of all these follows.
_FIELDS = struct.Struct("<8sII16sQQ32s16sB7x32s16s")
CHECKSUM_BYTES = 16
HEADER_BYTES = _FIELDS.size + CHECKSUM_BYTES
NOWHERE = bytes(16)  # the segment of records that live in no slot


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
    layout: bytes  # 16 bytes

    @classmethod
    def of(cls, namespace: bytes, layout: bytes) -> "Space":
        for name, value in (("namespace", namespace), ("layout", layout)):
            if not isinstance(value, bytes):
                raise TypeError(f"{name}: expected bytes, got {type(value).__name__}")
        return cls(blake2b(namespace, digest_size=32).digest(), blake2b(layout, digest_size=16).digest())


@dataclass(frozen=True)
class Header:
    space: Space
    key: bytes
    length: int  # bytes of payload
    checksum: bytes
    sequence: int = 0  # later writes have greater ones
    segment: bytes = NOWHERE  # identity of the segment's formatting, so that what an earlier one left is not a record
    slot: int = 0

    def pack(self) -> bytes:
        space, key = self.space, self.key.ljust(32, b"\0")
        where = (MAGIC, VERSION, self.slot, self.segment, self.sequence, self.length)
        fields = _FIELDS.pack(*where, space.namespace, space.layout, len(self.key), key, self.checksum)
        return fields + checksum([fields])

    @classmethod
    def unpack(cls, data: bytes) -> "Header | None":
        """None unless `data` begins with an undamaged header of this version."""
        fields = data[: _FIELDS.size]
        if len(data) < HEADER_BYTES or not fields.startswith(MAGIC):
            return None
        if checksum([fields]) != data[_FIELDS.size : HEADER_BYTES]:
            return None
        _, version, slot, segment, sequence, length, namespace, layout, key_bytes, key, digest = _FIELDS.unpack(fields)
        if version != VERSION:
            return None
        return cls(Space(namespace, layout), key[:key_bytes], length, digest, sequence, segment, slot)

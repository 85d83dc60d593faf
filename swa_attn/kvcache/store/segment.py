"""A segment: one preallocated file, cut into slots of one size."""

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from .buffers import ALIGNMENT, aligned_empty
from .file_io import FileIO, OpenFile
from .record import CHECKSUM_BYTES, checksum

MAGIC = b"SWAKVSEG"
VERSION = 1
# magic, version, payload bytes of a slot, bytes of the file, identity of this formatting; their checksum follows.
_FIELDS = struct.Struct("<8sIQQ16s")
NAME = "segment-{:06d}.slab"
PATTERN = "segment-*.slab"


class UnknownVersion(Exception):
    """A file of a later version of this store, which must not be touched."""


@dataclass(frozen=True)
class Format:
    """How a segment is cut: the superblock in its first 4096 bytes. Formatting anew disowns every record in it."""

    slot_payload: int
    nbytes: int
    identity: bytes

    @property
    def stride(self) -> int:
        return ALIGNMENT + self.slot_payload

    @property
    def num_slots(self) -> int:
        return (self.nbytes - ALIGNMENT) // self.stride

    def offset(self, slot: int) -> int:
        return ALIGNMENT + slot * self.stride

    def pack(self) -> bytes:
        fields = _FIELDS.pack(MAGIC, VERSION, self.slot_payload, self.nbytes, self.identity)
        return fields + checksum([fields])

    @classmethod
    def unpack(cls, data: bytes) -> "Format | None":
        """None for anything but an undamaged superblock."""
        fields = data[: _FIELDS.size]
        if not fields.startswith(MAGIC) or checksum([fields]) != data[_FIELDS.size : _FIELDS.size + CHECKSUM_BYTES]:
            return None
        _, version, slot_payload, nbytes, identity = _FIELDS.unpack(fields)
        if version != VERSION:
            raise UnknownVersion(version)
        return cls(slot_payload, nbytes, identity)


@dataclass(eq=False)
class Segment:
    """An open segment file. `owned`: this process holds its lock and is the only one that writes to it."""

    file: OpenFile
    nbytes: int
    format: Format | None  # None: not cut into slots yet
    owned: bool
    # Guarded by the store's lock:
    pins: int = 1  # reads and writes under way; and until its records are known
    last_used: int = -1  # when one of its records was used last, by the index's clock

    @classmethod
    def create(cls, io: FileIO, path: Path, nbytes: int, *, direct: bool) -> "Segment | None":
        """None if another process was faster."""
        try:
            file = OpenFile(io, path, os.O_RDWR | os.O_CREAT | os.O_EXCL, direct=direct)
        except FileExistsError:
            return None
        if not file.lock():
            return None
        try:
            file.allocate(nbytes)
        except OSError:
            io.remove(path)
            raise
        return cls(file, nbytes, None, owned=True)

    @classmethod
    def open(cls, io: FileIO, path: Path, nbytes: int, *, direct: bool, adopt: bool) -> "Segment":
        """`adopt`: take it over if nobody else has it. `nbytes` is for files whose superblock does not tell."""
        file = _open_locked(io, path, direct=direct) if adopt else None
        owned = file is not None
        if file is None:
            file = OpenFile(io, path, os.O_RDONLY, direct=direct)
        format = read_format(file)
        segment = cls(file, format.nbytes if format else nbytes, format, owned=owned)
        if owned and file.size() < segment.nbytes:
            file.allocate(segment.nbytes)
        return segment

    def cut(self, slot_payload: int) -> None:
        """Formats the segment. Raises OSError, and then it has no format."""
        self.format = None
        new = Format(slot_payload, self.nbytes, os.urandom(16))
        block = aligned_empty(ALIGNMENT)
        packed = new.pack()
        block[: len(packed)] = memoryview(packed)
        self.file.write([block], 0)
        self.format = new


def _open_locked(io: FileIO, path: Path, *, direct: bool) -> OpenFile | None:
    """None if another process owns the file, or if it cannot be written to."""
    try:
        file = OpenFile(io, path, os.O_RDWR, direct=direct)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return None
        raise
    return file if file.lock() else None


def read_format(file: OpenFile) -> Format | None:
    block = aligned_empty(ALIGNMENT)
    file.read([block], 0)
    return Format.unpack(block.tobytes())

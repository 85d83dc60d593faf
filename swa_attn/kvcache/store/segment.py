"""A segment: one preallocated file, cut into slots of one size."""

import errno
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from .buffers import ALIGNMENT, aligned_empty
from .file_io import FileIO, OpenFile
from .options import SlabOptions
from .record import CHECKSUM_BYTES, checksum

MAGIC = b"SWAKVSEG"
VERSION = 1
# magic, version, payload bytes of a slot, bytes of the file, identity of this formatting; their checksum follows.
_FIELDS = struct.Struct("<8sIQQ16s")
NAME = "segment-{:06d}.slab"
PATTERN = "segment-*.slab"


class LeftAlone(Exception):
    """A file that must not be touched. `kind`: see `StoreStats.left_alone`; `nbytes`: what a store made for it once, and
    which is therefore not there to be used for others."""

    def __init__(self, kind: str, nbytes: int = 0) -> None:
        super().__init__(kind)
        self.kind, self.nbytes = kind, nbytes


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

    def is_plausible(self, size: int, options: SlabOptions) -> bool:
        """Whether a store with these options may work with it in a file of `size` bytes. Nobody vouches for the numbers of
        a superblock: these bounds keep what opening costs within what the store's own segments would."""
        return (
            self.nbytes <= min(max(size, options.segment_bytes), options.largest_segment)
            and self.slot_payload >= ALIGNMENT
            and self.slot_payload % ALIGNMENT == self.nbytes % ALIGNMENT == 0
            and self.num_slots >= 1
        )

    def pack(self) -> bytes:
        fields = _FIELDS.pack(MAGIC, VERSION, self.slot_payload, self.nbytes, self.identity)
        return fields + checksum([fields])

    @classmethod
    def unpack(cls, data: bytes) -> "Format | None":
        """None for anything but an undamaged superblock. Raises LeftAlone for that of another version."""
        fields = data[: _FIELDS.size]
        if not fields.startswith(MAGIC) or checksum([fields]) != data[_FIELDS.size : _FIELDS.size + CHECKSUM_BYTES]:
            return None
        _, version, slot_payload, nbytes, identity = _FIELDS.unpack(fields)
        if version != VERSION:
            raise LeftAlone("version")
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
    def create(cls, io: FileIO, path: Path, options: SlabOptions) -> "Segment | None":
        """None if another process was faster, or something else has the name."""
        try:
            file = OpenFile(io, path, os.O_RDWR | os.O_CREAT | os.O_EXCL, direct=options.direct)
        except FileExistsError:
            return None
        if not file.lock():
            return None
        try:
            file.allocate(options.segment_bytes)
        except OSError:
            io.remove(path)
            raise
        return cls(file, options.segment_bytes, None, owned=True)

    @classmethod
    def open(cls, io: FileIO, path: Path, options: SlabOptions, room: int) -> "Segment":
        """Takes it over if nobody else has it and it is no larger than `room`; else it is there to read.

        Raises LeftAlone if it may not be one of this store's, before anything is written to it, and OSError.
        """
        _check_status(io.status_at(path), options)
        file = _open_locked(io, path, options) if room >= options.segment_bytes else None
        owned = file is not None
        if file is None:
            file = OpenFile(io, path, os.O_RDONLY, direct=options.direct)
        size = _check_status(file.status(), options)
        format = read_format(file, size, options)
        nbytes = format.nbytes if format else options.segment_bytes
        if owned and nbytes > room:
            file, owned = OpenFile(io, path, os.O_RDONLY, direct=options.direct), False
            _check_status(file.status(), options)  # the path may lead elsewhere by now
        elif owned and size < nbytes:
            file.allocate(nbytes)
        return cls(file, nbytes, format, owned=owned)

    def cut(self, slot_payload: int) -> None:
        """Formats the segment. Raises OSError, and then it has no format."""
        self.format = None
        new = Format(slot_payload, self.nbytes, os.urandom(16))
        block = aligned_empty(ALIGNMENT)
        packed = new.pack()
        block[: len(packed)] = memoryview(packed)
        self.file.write([block], 0)
        self.format = new


def _check_status(status: os.stat_result, options: SlabOptions) -> int:
    """The file's size. Raises LeftAlone for what is no file of this user's alone."""
    if not stat.S_ISREG(status.st_mode):
        raise LeftAlone("not_a_file")
    if status.st_nlink > 1:
        raise LeftAlone("links", status.st_size)
    others_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if options.mac_key is None and (others_write or status.st_uid != os.geteuid()):
        raise LeftAlone("untrusted")
    return status.st_size


def _open_locked(io: FileIO, path: Path, options: SlabOptions) -> OpenFile | None:
    """None if another process owns the file, or if it cannot be written to."""
    try:
        file = OpenFile(io, path, os.O_RDWR, direct=options.direct)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return None
        raise
    return file if file.lock() else None


def read_format(file: OpenFile, size: int, options: SlabOptions) -> Format | None:
    """How the file is cut; None if it is one of a store's and not cut, or its superblock is damaged. Raises LeftAlone."""
    block = aligned_empty(ALIGNMENT)
    file.read([block], 0)
    data = block.tobytes()
    if not data.startswith(MAGIC):
        if any(data):
            raise LeftAlone("foreign")
        return None
    try:
        format = Format.unpack(data)
    except LeftAlone as error:
        raise LeftAlone(error.kind, size) from None
    if format is not None and not format.is_plausible(size, options):
        raise LeftAlone("bounds", size)
    return format

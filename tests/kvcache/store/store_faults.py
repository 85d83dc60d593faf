"""A FileIO that breaks on demand, and contents that follow from their key."""

import errno
import functools
import hashlib
import os
import threading
import time

import numpy as np

from swa_attn.kvcache.store.buffers import ALIGNMENT, aligned_empty
from swa_attn.kvcache.store.file_io import FileIO

SECTOR = 512


def key_of(i: int) -> bytes:
    return hashlib.blake2b(b"key %d" % i, digest_size=16).digest()


@functools.lru_cache(256)
def content(key: bytes, nbytes: int) -> np.ndarray:
    data = np.random.Generator(np.random.PCG64(list(key))).integers(0, 256, nbytes, dtype=np.uint8)
    data.flags.writeable = False  # it is shared
    return data


class FaultyIO(FileIO):
    """Every system call is an operation with a number, from 0. `faults[n]` is what happens to operation n; `always`
    happens to all operations of the named calls. A fault that makes no sense for the operation does not happen; `hit`
    lists those that did.

    EIO, ENOSPC, EROFS, ENODEV   the call raises
    short                        half of the bytes are transferred, in whole sectors, and the call says so
    torn_512, torn_4096          a write that says it is complete stops after one sector, or after one page
    lost                         a write that says it is complete writes nothing
    reordered                    a write that says it is complete is carried out after the next one
    astray                       a write lands one page further
    flip                         one bit changes on the way, in either direction
    slow                         the call takes longer
    """

    RAISING = ("EIO", "ENOSPC", "EROFS", "ENODEV")
    READING = ("short", "flip", "slow")
    WRITING = ("short", "torn_512", "torn_4096", "lost", "reordered", "astray", "flip", "slow")

    def __init__(self, faults=None, always=None, slow_seconds: float = 0.05):
        self.faults = dict(faults or {})
        self.always = dict(always or {})
        self.slow_seconds = slow_seconds
        self.operations: list[str] = []
        self.record_writes: list[int] = []  # numbers of the operations that wrote a record
        self.hit: list[tuple[str, str]] = []
        self._held: list[tuple] = []
        self._mutex = threading.Lock()

    def can_happen(self, call: str, fault: str) -> bool:
        return fault in self.RAISING or fault in {"read": self.READING, "write": self.WRITING}.get(call, ())

    def _enter(self, call: str) -> str | None:
        with self._mutex:
            number = len(self.operations)
            self.operations.append(call)
            fault = self.faults.get(number, self.always.get(call))
            if fault is None or not self.can_happen(call, fault):
                return None
            self.hit.append((call, fault))
        if fault in self.RAISING:
            raise OSError(getattr(errno, fault), f"injected into {call}")
        if fault == "slow":
            time.sleep(self.slow_seconds)
            return None
        return fault

    def make_directory(self, path):
        self._enter("make_directory")
        super().make_directory(path)

    def names(self, directory):
        self._enter("names")
        return super().names(directory)

    def open(self, path, flags):
        self._enter("open")
        return super().open(path, flags)

    def remove(self, path):
        self._enter("remove")
        super().remove(path)

    def lock(self, fd):
        self._enter("lock")
        return super().lock(fd)

    def allocate(self, fd, nbytes):
        self._enter("allocate")
        super().allocate(fd, nbytes)

    def status(self, fd):
        self._enter("status")
        return super().status(fd)

    def status_at(self, path):
        self._enter("status_at")
        return super().status_at(path)

    def sync(self, fd):
        self._enter("sync")
        super().sync(fd)

    def read(self, fd, pieces, offset):
        fault = self._enter("read")
        if fault == "short":
            pieces = _first(pieces, _half(pieces))
        count = super().read(fd, pieces, offset)
        if fault == "flip" and count:
            _flip(pieces, count)
        return count

    def write(self, fd, pieces, offset):
        total = sum(piece.nbytes for piece in pieces)
        if total > ALIGNMENT:
            self.record_writes.append(len(self.operations))
        fault = self._enter("write")
        if fault == "short":
            return super().write(fd, _first(pieces, _half(pieces)), offset)
        if fault == "flip":
            pieces = _copied(pieces)
            _flip(pieces, total)
        elif fault == "astray":
            offset += ALIGNMENT
        elif fault == "reordered":
            self._held.append((os.dup(fd), _copied(pieces), offset))
            return total
        elif fault is not None:
            kept = {"lost": 0, "torn_512": SECTOR, "torn_4096": ALIGNMENT}[fault]
            if kept:
                super().write(fd, _first(pieces, kept), offset)
            return total
        count = super().write(fd, pieces, offset)
        self.flush()
        return count

    def flush(self):
        """Carries out the writes that were held back."""
        held, self._held = self._held, []
        for fd, pieces, offset in held:
            super().write(fd, pieces, offset)
            os.close(fd)


def _copied(pieces):
    """The same bytes in aligned memory of our own."""
    copies = [aligned_empty(piece.nbytes) for piece in pieces]
    for copy, piece in zip(copies, pieces):
        copy[:] = piece
    return copies


def _half(pieces) -> int:
    return max(SECTOR, sum(piece.nbytes for piece in pieces) // 2 // SECTOR * SECTOR)


def _first(pieces, nbytes: int):
    taken = []
    for piece in pieces:
        if nbytes:
            taken.append(piece[:nbytes])
            nbytes -= taken[-1].nbytes
    return taken


def _flip(pieces, count: int, position: float = 0.7) -> None:
    """Flips a bit in the used part of the bytes: of a header alone in its first bytes, else in the payload."""
    where = 20 if count <= ALIGNMENT else int(count * position)
    for piece in pieces:
        if where < piece.nbytes:
            piece[where] ^= 4
            return
        where -= piece.nbytes

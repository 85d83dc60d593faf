"""The only place that makes system calls on the store's files. Tests subclass it to inject faults."""

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from .buffers import Bytes


class FileIO:
    """Thin and without policy: each method is one system call, raises OSError, and may transfer less than asked."""

    def make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def names(self, directory: Path) -> list[str]:
        return os.listdir(directory)

    def open(self, path: Path, flags: int) -> int:
        # A link is not followed, and a FIFO does not wait for somebody at its other end.
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def lock(self, fd: int) -> bool:
        """Takes the exclusive lock of the open file, or says that another process has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def allocate(self, fd: int, nbytes: int) -> None:
        os.posix_fallocate(fd, 0, nbytes)

    def status(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def status_at(self, path: Path) -> os.stat_result:
        """Of what the path itself names: of a link, not of its target."""
        return os.lstat(path)

    def read(self, fd: int, pieces: Sequence[Bytes], offset: int) -> int:
        return os.preadv(fd, pieces, offset)

    def write(self, fd: int, pieces: Sequence[Bytes], offset: int) -> int:
        return os.pwritev(fd, pieces, offset)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)


class OpenFile:
    """A descriptor that is closed when its last user lets go of it, so that a file can be replaced under way."""

    def __init__(self, io: FileIO, path: Path, flags: int, *, direct: bool) -> None:
        self._fd = -1  # what no call accepts
        self._io = io
        self.path = path
        if direct:
            try:
                self._fd = io.open(path, flags | os.O_DIRECT)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
        if self._fd < 0:
            self._fd = io.open(path, flags)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._io.close(fd)

    __del__ = close

    def lock(self) -> bool:
        return self._io.lock(self._fd)

    def allocate(self, nbytes: int) -> None:
        self._io.allocate(self._fd, nbytes)

    def status(self) -> os.stat_result:
        return self._io.status(self._fd)

    def in_place(self) -> bool:
        """Whether the path still leads to the open file."""
        try:
            there = self._io.status_at(self.path)
        except FileNotFoundError:
            return False
        here = self.status()
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def sync(self) -> None:
        self._io.sync(self._fd)

    def read(self, pieces: Sequence[Bytes], offset: int) -> int:
        """Fills the pieces; returns how many bytes there were before the file ended."""
        done, pieces = 0, list(pieces)
        while pieces:
            count = self._io.read(self._fd, pieces, offset + done)
            if not count:
                break
            done += count
            pieces = _rest(pieces, count)
        return done

    def write(self, pieces: Sequence[Bytes], offset: int) -> None:
        """Writes all of the pieces."""
        done, pieces = 0, list(pieces)
        while pieces:
            count = self._io.write(self._fd, pieces, offset + done)
            if not count:
                raise OSError(errno.EIO, "nothing was written", str(self.path))
            done += count
            pieces = _rest(pieces, count)


def _rest(pieces: list[Bytes], count: int) -> list[Bytes]:
    """What is left of the pieces after their first `count` bytes."""
    for i, piece in enumerate(pieces):
        if count < piece.nbytes:
            return [piece[count:], *pieces[i + 1 :]]
        count -= piece.nbytes
    return []

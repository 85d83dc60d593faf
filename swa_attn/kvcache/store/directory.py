"""The segment files of one directory: opens, takes over, makes and drops them."""

import logging
from collections import Counter
from pathlib import Path

from .file_io import FileIO
from .options import SlabOptions
from .segment import NAME, PATTERN, LeftAlone, Segment

logger = logging.getLogger(__name__)

_MOST_SEGMENTS = 1 << 14  # each is an open file


class Directory:
    """`segments` is replaced, never changed, so that any thread may read it; one thread at a time may call methods."""

    def __init__(self, path: Path, options: SlabOptions, io: FileIO) -> None:
        self.path = path
        self._options = options
        self._io = io
        self.segments: tuple[Segment, ...] = ()
        self._left_alone: dict[Path, str] = {}  # replaced as well; why
        self._lost_bytes = 0  # of segments that were left alone

    @property
    def owned(self) -> list[Segment]:
        return [segment for segment in self.segments if segment.owned]

    @property
    def foreign(self) -> list[Segment]:
        return [segment for segment in self.segments if not segment.owned]

    @property
    def replaced(self) -> list[Segment]:
        """Those whose path leads to another file by now, or to none."""
        return [segment for segment in self.segments if not segment.file.in_place()]

    @property
    def left_alone(self) -> dict[str, int]:
        """How many files of a segment's name are not used, by reason, as of the last look."""
        return dict(Counter(self._left_alone.values()))

    def drop(self, segment: Segment) -> None:
        self.segments = tuple(other for other in self.segments if other is not segment)

    def populate(self) -> list[Segment]:
        """Opens the segments not known yet, taking over what nobody holds, and makes what is missing; returns both. What
        is not a segment, or cannot be opened, is left alone. Raises OSError if the directory itself cannot be used."""
        before, known = set(self.segments), self._paths()
        left_alone: dict[Path, str] = {}
        self._lost_bytes = 0
        if not self._options.read_only:
            self._io.make_directory(self.path)
        for name in sorted(self._io.names(self.path)):
            path = self.path / name
            if path.match(PATTERN) and path not in known and (kind := self._open(path)) is not None:
                left_alone[path] = kind
        self._left_alone = left_alone
        if not self._options.read_only:
            self._create()
        return [segment for segment in self.segments if segment not in before]

    def close(self) -> None:
        """With no operation under way."""
        segments, self.segments = self.segments, ()
        for segment in segments:
            try:
                if segment.owned:
                    segment.file.sync()
            except OSError as error:
                logger.warning("%s: not synchronised: %s", segment.file.path, error)
            segment.file.close()

    def _paths(self) -> set[Path]:
        return {segment.file.path for segment in self.segments}

    def _missing(self) -> int:
        """Bytes that the directory may still grow by."""
        options = self._options
        return options.capacity_bytes - sum(segment.nbytes for segment in self.owned) - self._lost_bytes

    def _open(self, path: Path) -> str | None:
        """Why the file was left alone, or None."""
        options = self._options
        try:
            if len(self.segments) >= _MOST_SEGMENTS:
                raise LeftAlone("many")
            segment = Segment.open(self._io, path, options, 0 if options.read_only else self._missing())
        except LeftAlone as error:
            kind, nbytes, reason = error.kind, error.nbytes, error.kind
        except OSError as error:
            kind, nbytes, reason = "unreadable", options.segment_bytes, repr(error)
        else:
            self.segments += (segment,)
            return None
        if self._left_alone.get(path) != kind:  # not at every look
            logger.warning("%s: left alone: %s", path, reason)
        self._lost_bytes += min(nbytes, options.segment_bytes)
        return kind

    def _create(self) -> None:
        options, number, taken = self._options, 0, self._paths()
        while self._missing() >= options.segment_bytes:
            path = self.path / NAME.format(number)
            number += 1
            if path in taken:
                continue
            try:
                segment = Segment.create(self._io, path, options)
            except OSError as error:
                logger.warning("%s: %s; the store is %d bytes smaller than asked", path, error, self._missing())
                return
            if segment is not None:
                self.segments += (segment,)

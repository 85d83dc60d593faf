"""The segment files of one directory: opens, takes over, makes and drops them."""

import logging
from pathlib import Path

from .file_io import FileIO
from .options import SlabOptions
from .segment import NAME, PATTERN, Segment, UnknownVersion

logger = logging.getLogger(__name__)


class Directory:
    """`segments` is replaced, never changed, so that any thread may read it; one thread at a time may call methods."""

    def __init__(self, path: Path, options: SlabOptions, io: FileIO) -> None:
        self.path = path
        self._options = options
        self._io = io
        self.segments: tuple[Segment, ...] = ()
        self._unusable = 0  # files that were left alone; they take room as well

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

    def drop(self, segment: Segment) -> None:
        self.segments = tuple(other for other in self.segments if other is not segment)

    def populate(self) -> list[Segment]:
        """Opens the segments not known yet, taking over what nobody holds, and makes what is missing; returns both. A
        file that cannot be opened is left alone. Raises OSError if the directory itself cannot be used."""
        before = set(self.segments)
        self._unusable = 0
        if not self._options.read_only:
            self._io.make_directory(self.path)
        for name in sorted(self._io.names(self.path)):
            path = self.path / name
            if path.match(PATTERN) and path not in self._paths():
                self._open(path)
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
        taken = sum(segment.nbytes for segment in self.owned) + self._unusable * options.segment_bytes
        return options.capacity_bytes - taken

    def _open(self, path: Path) -> None:
        options = self._options
        adopt = not options.read_only and self._missing() >= options.segment_bytes
        try:
            segment = Segment.open(self._io, path, options.segment_bytes, direct=options.direct, adopt=adopt)
        except (OSError, UnknownVersion) as error:
            logger.warning("%s: left alone: %r", path, error)
            self._unusable += 1
            return
        self.segments += (segment,)

    def _create(self) -> None:
        options, number, taken = self._options, 0, self._paths()
        while self._missing() >= options.segment_bytes:
            path = self.path / NAME.format(number)
            number += 1
            if path in taken:
                continue
            try:
                segment = Segment.create(self._io, path, options.segment_bytes, direct=options.direct)
            except OSError as error:
                logger.warning("%s: %s; the store is %d bytes smaller than asked", path, error, self._missing())
                return
            if segment is not None:
                self.segments += (segment,)

"""Callers' memory as bytes, and aligned memory for direct I/O."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .base import Buffer

Bytes = NDArray[np.uint8]

ALIGNMENT = 4096  # of memory, file offsets and lengths: enough for direct I/O on every block device
MAX_PIECES = 1000  # below IOV_MAX, with room for header and tail


def round_up(n: int, unit: int = ALIGNMENT) -> int:
    return -(-n // unit) * unit


def aligned_empty(nbytes: int) -> Bytes:
    """Memory at a page boundary, which direct I/O can use without a copy. `torch.from_numpy` makes it a tensor."""
    return np.frombuffer(mmap.mmap(-1, max(nbytes, 1)), np.uint8)[:nbytes]


def as_bytes(buffers: Sequence[Buffer], *, writable: bool = False) -> list[Bytes]:
    """One-dimensional uint8 views of the buffers, without the empty ones."""
    if isinstance(buffers, Buffer):
        raise TypeError(f"buffers: expected a sequence of buffers, got one {type(buffers).__name__}")
    views = [_as_bytes(buffer, i, writable) for i, buffer in enumerate(buffers)]
    views = [view for view in views if view.nbytes]
    if not views:
        raise ValueError("buffers: expected at least one byte, got none")
    return views


def _as_bytes(buffer: Buffer, index: int, writable: bool) -> Bytes:
    if isinstance(buffer, torch.Tensor):
        if buffer.device.type != "cpu" or not buffer.is_contiguous():
            given = f"{buffer.device}, strides {tuple(buffer.stride())}"
            raise ValueError(f"buffers[{index}]: expected a contiguous CPU tensor, got {given}")
        return buffer.detach().reshape(-1).view(torch.uint8).numpy()
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise ValueError(f"buffers[{index}]: expected contiguous memory, got strides {view.strides}")
    if writable and view.readonly:
        raise ValueError(f"buffers[{index}]: expected writable memory, got read-only {type(buffer).__name__}")
    if not view.nbytes:
        return np.empty(0, np.uint8)
    return np.frombuffer(view.cast("B"), np.uint8)


def _address(view: Bytes) -> int:
    return view.__array_interface__["data"][0]


@dataclass(frozen=True)
class Transfer:
    """A payload as direct I/O sees it: `pieces` are aligned and cover it up to the next multiple of `ALIGNMENT`;
    `copies` pairs the caller's bytes that could not be used in place with their stand-ins."""

    pieces: list[Bytes]
    copies: list[tuple[Bytes, Bytes]]
    nbytes: int

    def stage(self) -> None:
        for theirs, ours in self.copies:
            ours[:] = theirs

    def deliver(self) -> None:
        for theirs, ours in self.copies:
            theirs[:] = ours

    def payload(self) -> list[Bytes]:
        """The pieces without the padding behind the payload."""
        padding = sum(piece.nbytes for piece in self.pieces) - self.nbytes
        last = self.pieces[-1]
        return [*self.pieces[:-1], last[: last.nbytes - padding]]


class Staging:
    """The aligned memory of one worker thread: a header, and stand-ins for what callers have unaligned."""

    def __init__(self) -> None:
        self.header = aligned_empty(ALIGNMENT)
        self._tail = aligned_empty(ALIGNMENT)
        self._bounce = aligned_empty(0)

    def transfer(self, views: Sequence[Bytes]) -> Transfer:
        nbytes = sum(view.nbytes for view in views)
        in_place = len(views) <= MAX_PIECES and all(_address(view) % ALIGNMENT == 0 for view in views)
        if in_place and all(view.nbytes % ALIGNMENT == 0 for view in views[:-1]):
            return self._with_tail(views, nbytes)
        return self._bounced(views, nbytes)

    def _with_tail(self, views: Sequence[Bytes], nbytes: int) -> Transfer:
        *whole, last = views
        body = last.nbytes // ALIGNMENT * ALIGNMENT
        pieces, copies = list(whole), []
        if body:
            pieces.append(last[:body])
        if rest := last.nbytes - body:
            self._tail[rest:] = 0
            pieces.append(self._tail)
            copies.append((last[body:], self._tail[:rest]))
        return Transfer(pieces, copies, nbytes)

    def _bounced(self, views: Sequence[Bytes], nbytes: int) -> Transfer:
        size = round_up(nbytes)
        if self._bounce.nbytes < size:
            self._bounce = aligned_empty(size)
        bounce = self._bounce[:size]
        bounce[nbytes:] = 0
        copies, start = [], 0
        for view in views:
            copies.append((view, bounce[start : start + view.nbytes]))
            start += view.nbytes
        return Transfer([bounce], copies, nbytes)

"""Transfers on a GPU: two side streams, one event per layer, and no wait on the host."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ops import copy_pages
from .storage import DevicePages, HostPages
from .store import Store
from .store_mover import Observe, StoreMover
from .tier import Tier
from .transfer import Transfer

POLL_SECONDS = 0.0002  # how often events are looked at while the host waits for one


@dataclass(frozen=True)
class Streams:
    """What is needed of `torch.cuda`, or of something that behaves like it.

    Args:
        new: makes a stream, with torch.cuda.Stream's `wait_event` and `record_event`.
        current: the stream that the model runs on.
        use: a context in which operations go to a stream.
    """

    new: Callable[[], Any]
    current: Callable[[], Any]
    use: Callable[[Any], Any]

    @staticmethod
    def of(device: torch.device) -> "Streams":
        return Streams(
            lambda: torch.cuda.Stream(device), lambda: torch.cuda.current_stream(device), lambda s: torch.cuda.stream(s)
        )


class StreamMover(StoreMover):
    """Copies up on one stream and down on another, in the order of submission.

    A copy starts when the model's work before it is done: what it reads is then written, and what it overwrites no longer
    read. The two streams need not wait for each other: the cache holds both ends of a copy until it has ended. A layer of
    the model waits, on the GPU, for the event of that layer's last copy. Page ids travel to the device from pinned memory.
    Nothing blocks the host but `poll` with a timeout. See `StoreMover`.
    """

    def __init__(
        self,
        device: Sequence[DevicePages],
        host: Sequence[HostPages],
        store: Store | None,
        streams: Streams,
        timeout: float | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._streams = streams
        self._up, self._down = streams.new(), streams.new()
        super().__init__(device, host, store, timeout, observe)

    def _start(self) -> None:
        super()._start()
        self._last_down: Any = None  # event of the last copy into the host
        self._layers: dict[int, Any] = {}  # layer -> event of the last copy into it
        self._copying: list[tuple[Transfer, Any, float]] = []
        self._to_write: deque[tuple[Transfer, Any]] = deque()  # to the store, after an event

    def submit(self, transfer: Transfer) -> None:
        self._pending += 1
        if transfer.source is Tier.DISK:
            self._read(transfer)
        elif transfer.target is Tier.DISK:
            self._to_write.append((transfer, self._last_down))
        else:
            self._copy(transfer)

    def poll(self, timeout: float | None = 0.0) -> bool:
        self._look()
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended and self._pending and (deadline is None or time.monotonic() < deadline):
            time.sleep(POLL_SECONDS)
            self._look()
        called = bool(self._ended)
        while self._ended:
            transfer, count = self._ended.popleft()
            self._pending -= 1
            transfer.done(count)
        return called

    def wait_for_layer(self, layer: int) -> None:
        event = self._layers.get(layer)
        if event is not None:
            self._streams.current().wait_event(event)

    def wait_for_host(self) -> None:
        if self._last_down is not None:
            self._streams.current().wait_event(self._last_down)

    def close(self) -> None:
        """What has been submitted is finished; `done` is not called any more."""
        while self._copying or self._to_write:
            self._look()
            time.sleep(POLL_SECONDS)

    def _copy(self, transfer: Transfer) -> None:
        up = transfer.target is Tier.DEVICE
        stream = self._up if up else self._down
        stream.wait_event(self._streams.current().record_event())
        with self._streams.use(stream):
            ids = self._ids(transfer)
            layers = self._device[transfer.group].spec.layers
            if up:
                for i, layer in enumerate(layers):
                    self._copy_layers(transfer, ids, slice(i, i + 1))
                    self._layers[layer] = stream.record_event()
            else:
                self._copy_layers(transfer, ids, slice(None))
        event = stream.record_event()
        if not up:
            self._last_down = event
        self._copying.append((transfer, event, time.monotonic()))

    def _copy_layers(self, transfer: Transfer, ids: tuple[torch.Tensor, torch.Tensor], only: slice) -> None:
        host, device = self._host[transfer.group], self._device[transfer.group]
        for above, below, scale in ((device.k, host.k, host.k_scale), (device.v, host.v, host.v_scale)):
            scale = None if scale is None else scale[only]
            if transfer.target is Tier.DEVICE:
                copy_pages(below[only], above[only], *ids, src_scale=scale)
            else:
                copy_pages(above[only], below[only], *ids, dst_scale=scale)

    def _ids(self, transfer: Transfer) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.tensor([transfer.source_ids, transfer.target_ids], dtype=torch.int64)
        device = self._device[transfer.group].k.device
        if device.type == "cuda":
            both = both.pin_memory().to(device, non_blocking=True)
        return both[0], both[1]

    def _look(self) -> None:
        """Note which copies have ended, and write to the store what has reached the host."""
        over = [copy for copy in self._copying if copy[1].query()]
        for copy in over:
            self._copying.remove(copy)
            transfer, _, begun = copy
            moved = len(transfer.keys) * self._host[transfer.group].bytes_per_page
            self._observe("host", moved, time.monotonic() - begun)
            self._end(transfer, len(transfer.keys))
        while self._to_write and (self._to_write[0][1] is None or self._to_write[0][1].query()):
            self._write(self._to_write.popleft()[0])

    def _end(self, transfer: Transfer, count: int) -> None:
        self._ended.append((transfer, count))  # a deque: safe from the store's threads

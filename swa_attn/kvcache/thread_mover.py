"""Transfers on a machine without a GPU: a thread copies between the memory that stands for a device and the host's."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import torch

from ..ops import copy_pages
from .storage import DevicePages, HostPages
from .store import Store
from .store_mover import Observe, StoreMover
from .tier import Tier
from .transfer import Transfer


class ThreadMover(StoreMover):
    """Copies in one thread, in the order of submission; loads go layer by layer, so that a model can start on the first
    layers while the others are still coming. See `StoreMover`."""

    def __init__(
        self,
        device: Sequence[DevicePages],
        host: Sequence[HostPages],
        store: Store | None,
        timeout: float | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.waited_seconds = 0.0  # that a model waited for layers
        super().__init__(device, host, store, timeout, observe)

    def _start(self) -> None:
        super()._start()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Transfer] = deque()
        self._arriving: dict[int, int] = {}  # layer -> transfers into the device that have not reached it
        self._leaving = 0  # transfers into the host under way
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="swa_attn copies", daemon=True)
        self._thread.start()

    def submit(self, transfer: Transfer) -> None:
        self._pending += 1
        if transfer.source is Tier.DISK:
            self._read(transfer)
            return
        with self._changed:
            self._queue.append(transfer)
            if transfer.target is Tier.DEVICE:
                for layer in self._device[transfer.group].spec.layers:
                    self._arriving[layer] = self._arriving.get(layer, 0) + 1
            elif transfer.target is Tier.HOST:
                self._leaving += 1
            self._changed.notify_all()

    def poll(self, timeout: float | None = 0.0) -> bool:
        with self._changed:
            if timeout != 0.0 and self._pending:
                self._changed.wait_for(lambda: self._ended or self._failure, timeout)
            ended = list(self._ended)
            self._ended.clear()
            failure = self._failure
        if failure is not None:
            raise RuntimeError("a transfer between tiers failed; the cache cannot be trusted any more") from failure
        for transfer, count in ended:
            self._pending -= 1
            transfer.done(count)
        return bool(ended)

    def wait_for_layer(self, layer: int) -> None:
        with self._changed:
            if self._arriving.get(layer, 0):
                started = time.monotonic()
                self._changed.wait_for(lambda: not self._arriving.get(layer, 0) or self._failure)
                self.waited_seconds += time.monotonic() - started

    def wait_for_host(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._leaving or self._failure)

    def reset(self) -> None:
        with suppress(RuntimeError):  # "not acquired": an exception at the end of a `with` may have kept the lock taken
            while True:
                self._lock.release()
        super().reset()

    def close(self) -> None:
        """What has been submitted is finished; `done` is not called any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():  # not if it could not be started
            self._thread.join()

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                started = time.monotonic()
                if batch[0].target is Tier.DISK:
                    self._write(batch[0])
                    continue
                moved = sum(len(t.keys) * self._host[t.group].bytes_per_page for t in batch)
                if batch[0].target is Tier.DEVICE:
                    self._copy_up(batch)
                else:
                    self._copy_down(batch[0])
                self._observe("host", moved, time.monotonic() - started)
                for transfer in batch:
                    self._end(transfer, len(transfer.keys))
        except BaseException as failure:
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _next_batch(self) -> list[Transfer] | None:
        """The next transfer, or all next ones that go into the device; None when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return None
            batch = [self._queue.popleft()]
            while batch[0].target is Tier.DEVICE and self._queue and self._queue[0].target is Tier.DEVICE:
                batch.append(self._queue.popleft())
            return batch

    def _copy_up(self, batch: Sequence[Transfer]) -> None:
        """Layer by layer of the model over all transfers: windows are small, so the full layers decide the time."""
        parts = [(layer, i, t) for t in batch for i, layer in enumerate(self._device[t.group].spec.layers)]
        parts.sort(key=lambda part: part[0])
        ids = {t: (torch.tensor(t.source_ids), torch.tensor(t.target_ids)) for t in batch}
        for layer, i, transfer in parts:
            host, device = self._host[transfer.group], self._device[transfer.group]
            only = slice(i, i + 1)
            for source, scale, target in ((host.k, host.k_scale, device.k), (host.v, host.v_scale, device.v)):
                copy_pages(source[only], target[only], *ids[transfer], src_scale=None if scale is None else scale[only])
            with self._changed:
                self._arriving[layer] -= 1
                if not self._arriving[layer]:
                    self._changed.notify_all()

    def _copy_down(self, transfer: Transfer) -> None:
        host, device = self._host[transfer.group], self._device[transfer.group]
        ids = torch.tensor(transfer.source_ids), torch.tensor(transfer.target_ids)
        copy_pages(device.k, host.k, *ids, dst_scale=host.k_scale)
        copy_pages(device.v, host.v, *ids, dst_scale=host.v_scale)
        with self._changed:
            self._leaving -= 1

    def _end(self, transfer: Transfer, count: int) -> None:
        with self._changed:
            self._ended.append((transfer, count))
            self._changed.notify_all()

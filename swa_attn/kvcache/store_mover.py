"""Transfers between host memory and a store, and what is common to the ways of copying above it."""

import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, wait

from .storage import DevicePages, HostPages
from .store import Store
from .tier import Tier
from .transfer import Mover, Transfer

RESET_SECONDS = 30.0  # a store that takes longer is not going to answer

Observe = Callable[[str, int, float], None]  # "host" or "disk", bytes, seconds


class StoreMover(Mover):
    """Puts and gets of host pages, one record per page.

    Args:
        device, host: the memory of every group.
        store: below the host, or None.
        timeout: seconds after which a read from the store that has not begun is given up.
        observe: is told how long transfers took.
    """

    def __init__(
        self,
        device: Sequence[DevicePages],
        host: Sequence[HostPages],
        store: Store | None,
        timeout: float | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._device, self._host, self._store = tuple(device), tuple(host), store
        self._timeout = timeout
        self._observe = observe or (lambda *_: None)
        self._in_store: set[Future[None]] = set()  # one of each transfer; done when nothing of it runs any more
        self._start()

    def _start(self) -> None:
        """Nothing is under way."""
        self._ended: deque[tuple[Transfer, int]] = deque()
        self._pending = 0

    @property
    def num_pending(self) -> int:
        return self._pending

    @abstractmethod
    def _end(self, transfer: Transfer, count: int) -> None:
        """A transfer is over, in any thread; its `done` is called by the next `poll`."""

    def reset(self) -> None:
        self.close()
        late = wait(set(self._in_store), RESET_SECONDS).not_done
        if late:
            raise RuntimeError(f"{len(late)} transfers with the store did not end within {RESET_SECONDS} seconds")
        self._start()

    def discard(self, tier: Tier, group: int, keys: Sequence[Hashable]) -> None:
        if tier == Tier.DISK and self._store is not None:
            for key in keys:
                self._store.delete(_store_key(group, key))

    def refresh(self, group: int, keys: Sequence[Hashable]) -> None:
        if self._store is not None:
            for key in keys:
                self._store.touch(_store_key(group, key))

    def known(self, group: int, keys: Sequence[Hashable]) -> int:
        if self._store is None:
            return 0
        return self._store.leading([_store_key(group, key) for key in keys])

    def _write(self, transfer: Transfer) -> None:
        records = self._host[transfer.group].records
        futures = [
            self._store.put(_store_key(transfer.group, key), [records[page]])
            for key, page in zip(transfer.keys, transfer.source_ids, strict=True)
        ]
        self._when_all(transfer, futures)

    def _read(self, transfer: Transfer) -> None:
        records = self._host[transfer.group].records
        started = time.monotonic()
        futures = [
            self._store.get(_store_key(transfer.group, key), [records[page]], self._timeout)
            for key, page in zip(transfer.keys, transfer.target_ids, strict=True)
        ]
        num_bytes = len(futures) * records.shape[1]
        self._when_all(transfer, futures, lambda: self._observe("disk", num_bytes, time.monotonic() - started))

    def _when_all(self, transfer: Transfer, futures: Sequence["Future[bool]"], also: Callable[[], None] | None = None):
        left = [len(futures)]
        lock = threading.Lock()
        over: Future[None] = Future()

        def one(_: "Future[bool]") -> None:
            with lock:
                left[0] -= 1
                if left[0]:
                    return
            try:
                if also is not None:
                    also()
                self._end(transfer, next((i for i, f in enumerate(futures) if not f.result()), len(futures)))
            finally:
                self._in_store.discard(over)
                over.set_result(None)  # last: `reset` starts anew when this is done, before the store's futures may be

        self._in_store.add(over)
        for future in futures:
            future.add_done_callback(one)


def _store_key(group: int, key: Hashable) -> bytes:
    return bytes((group,)) + key

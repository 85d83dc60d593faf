"""A circuit breaker: after repeated failures nobody waits for the medium, until one operation finds it well again."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Permit:
    """Leave for one operation. It ends in `Breaker.attempt` or `Breaker.give_back`."""

    def __init__(self, probe: bool) -> None:
        self.probe = probe


class Breaker:
    """closed --`threshold` failures in a row, or one operation stuck--> open --back-off--> half_open --ok--> closed

    A failure is an OSError, or taking longer than `slow_seconds`. While half_open, one operation is the probe and all
    others are refused; if it fails, the back-off doubles, up to `max_backoff` seconds. An operation that has not
    returned after `slow_seconds` trips the breaker when the next one asks.
    """

    def __init__(
        self,
        name: str,
        threshold: int,
        slow_seconds: float,
        backoff: float,
        max_backoff: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._threshold = threshold
        self._slow_seconds = slow_seconds
        self._first_backoff = self._backoff = backoff
        self._max_backoff = max_backoff
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._retry_at: float | None = None  # set unless closed
        self._probe: Permit | None = None
        self._started: dict[Permit, float] = {}

    @property
    def state(self) -> str:
        with self._lock:
            if self._retry_at is None:
                return "closed"
            return "open" if self._probe is None else "half_open"

    @property
    def willing(self) -> bool:
        """Whether asking for a permit is worth it: healthy, or time for a probe."""
        with self._lock:
            return self._retry_at is None or (self._probe is None and self._clock() >= self._retry_at)

    def permit(self) -> Permit | None:
        """None while tripped."""
        with self._lock:
            now = self._clock()
            stuck = any(now - start > self._slow_seconds for start in self._started.values())
            if stuck and self._retry_at is None:
                self._trip(now)
            if self._retry_at is None:
                return Permit(probe=False)
            # While an earlier operation hangs, a probe would only lose one more worker.
            if stuck or self._probe is not None or now < self._retry_at:
                return None
            self._probe = Permit(probe=True)
            return self._probe

    def give_back(self, permit: Permit) -> None:
        """The operation did not happen after all."""
        with self._lock:
            if permit is self._probe:
                self._probe = None

    @contextmanager
    def attempt(self, permit: Permit) -> Iterator[None]:
        """Around the operation: sees its exception and its duration."""
        with self._lock:
            start = self._started[permit] = self._clock()
        ok = False
        try:
            yield
            ok = True
        finally:
            with self._lock:
                del self._started[permit]
                now = self._clock()
                self._settle(permit, ok and now - start <= self._slow_seconds, now)

    def trip(self) -> None:
        with self._lock:
            self._trip(self._clock())

    def _settle(self, permit: Permit, ok: bool, now: float) -> None:
        if permit is self._probe:
            self._probe = None
            if ok:
                self._retry_at, self._failures, self._backoff = None, 0, self._first_backoff
                logger.warning("%s: back in service", self._name)
            else:
                self._backoff = min(2 * self._backoff, self._max_backoff)
                self._trip(now)
        elif self._retry_at is None:
            self._failures = 0 if ok else self._failures + 1
            if self._failures >= self._threshold:
                self._trip(now)

    def _trip(self, now: float) -> None:
        if self._retry_at is None:
            logger.warning("%s: out of service after failures or a stuck operation", self._name)
        self._retry_at = now + self._backoff

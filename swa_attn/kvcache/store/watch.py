"""Requests that end in time, wherever the call that carries them out may hang."""

import logging
import threading
import time
import weakref
from collections.abc import Callable

from .workers import describe

logger = logging.getLogger(__name__)


class Request:
    """A request that was accepted. Its first outcome ends it: that of the thread that carries it out, or the watch's."""

    def __init__(self, end: Callable[[object], None]) -> None:
        self._end = end
        self._lock = threading.Lock()
        self.ended = False
        self.begun = False

    def finish(self, outcome: object) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = True
        self._end(outcome)


class _Waiting:
    """What the thread and the watch share. The thread does not hold the watch, so that it can be collected."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.due: dict[Request, float] = {}
        self.wakes = float("inf")  # when the thread looks again by itself
        self.closing = False

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify_all()

    def set(self, request: Request, due: float) -> None:
        with self.changed:
            self.due[request] = due
            if due < self.wakes:
                self.changed.notify_all()

    def _next(self) -> Request | None:
        """One that is overdue; None when there is nothing left to watch."""
        with self.changed:
            while self.due or not self.closing:
                request = min(self.due, key=self.due.__getitem__, default=None)
                now = time.monotonic()
                if request is not None and self.due[request] <= now:
                    del self.due[request]
                    return request
                self.wakes = float("inf") if request is None else self.due[request]
                self.changed.wait(None if request is None else self.wakes - now)
            return None

    def work(self) -> None:
        while (request := self._next()) is not None:
            try:
                request.finish("slow" if request.begun else "late")
            except BaseException as error:
                logger.error("giving a request up raised %s", describe(error))
            del request


class Watch:
    """Ends requests that are overdue: "late" those that have not begun, "slow" the others. The call that hangs is left
    hanging, and what it may still bring is dropped."""

    def __init__(self, name: str) -> None:
        self._waiting = waiting = _Waiting()
        threading.Thread(target=waiting.work, name=name, daemon=True).start()
        weakref.finalize(self, waiting.close).atexit = False

    def expect(self, request: Request, seconds: float) -> None:
        """It should have begun `seconds` from now."""
        self._waiting.set(request, time.monotonic() + seconds)

    def begin(self, request: Request, seconds: float) -> bool:
        """It begins, and should have ended `seconds` from now. False if it is too late for that."""
        waiting, now = self._waiting, time.monotonic()
        with waiting.changed:
            if now > waiting.due.pop(request, 0.0):
                overdue = True
            else:
                overdue, request.begun = False, True
                waiting.set(request, now + seconds)
        if overdue:
            request.finish("late")
        return not request.ended

    def forget(self, request: Request) -> None:
        with self._waiting.changed:
            self._waiting.due.pop(request, None)
            if self._waiting.closing:
                self._waiting.changed.notify_all()

    def close(self) -> None:
        """Goes on with what it has been told of, and ends."""
        self._waiting.close()

"""One call at a time: threads take turns, and a call from inside another one is refused by name."""

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import NamedTuple

from .interrupts import InterruptHold, is_running

LOOK_SECONDS = 0.2  # how often a waiting thread looks whether there is still somebody to wait for, and for Ctrl-C


class Inside(NamedTuple):
    """The call that has the turn."""

    name: str
    call: FrameType
    thread: int

    @property
    def is_over(self) -> bool:
        """It went away without giving its turn back: an exception cut its end short, or its thread ended."""
        return not is_running(self.call, sys._current_frames().get(self.thread))


class Turns:
    """Gives out turns: `with turns("step"): ...` waits until no other thread has one, and holds SIGINT.

    Args:
        owner: named by errors.
        begin: called with the name of every call that gets its turn, before its body; may raise to refuse.
        end: called at the end of every turn.
        is_due: whether `end` has something to do. What makes it true calls `end_if_due` afterwards.
    """

    def __init__(
        self, owner: str, begin: Callable[[str], None], end: Callable[[], None], is_due: Callable[[], bool]
    ) -> None:
        self.owner = owner
        self.begin, self.end, self.is_due = begin, end, is_due
        self._lock = threading.RLock()
        self._inside: Inside | None = None

    def __call__(self, name: str) -> "Turn":
        return Turn(self, name)

    def take(self, name: str, call: FrameType, hold: InterruptHold) -> None:
        """Wait for the turn. Raises RuntimeError for a call from within the one that has it, which would wait for ever."""
        while not self._lock.acquire(timeout=LOOK_SECONDS):
            hold.deliver_outermost()
            inside = self._inside
            if inside is not None and inside.is_over and self._inside is inside:  # it did not just end as it should
                raise RuntimeError(
                    f"{self.owner}.{name}: {self.owner}.{inside.name} of another thread was cut short by an exception "
                    "and kept its turn: call from that thread, or make a new engine"
                )
        self._refuse_if_within(name)
        self._inside = Inside(name, call, threading.get_ident())

    def end_if_due(self, name: str) -> None:
        """Call `end` in a turn of its own while it is due, but do not wait. For finalisers, which run in the middle of
        anything.

        Nothing that is due is lost: who has the turn looks here after giving it back.
        """
        while self.is_due() and self._try_end(name):
            pass

    def _try_end(self, name: str) -> bool:
        """False: somebody has the turn."""
        with InterruptHold():
            if not self._lock.acquire(blocking=False):
                return False
            if self._inside is not None:
                self._lock.release()
                return False
            self._inside = Inside(name, sys._getframe(), threading.get_ident())
            try:
                self.end()
            finally:
                self.give_back()
            return True

    def give_back(self) -> None:
        self._inside = None
        self._lock.release()

    def _refuse_if_within(self, name: str) -> None:
        """This thread has the lock: alone, or a second time."""
        inside = self._inside
        if inside is None:
            return
        if not inside.is_over:
            self._lock.release()
            raise RuntimeError(
                f"{self.owner}.{name}: called from within {self.owner}.{inside.name}, by its model, a signal handler or a "
                "finaliser; call it before or after"
            )
        with suppress(RuntimeError):  # "not owned": give back what the call that is over took
            while True:
                self._lock.release()
        self._lock.acquire()


class Turn:
    """One call's turn."""

    def __init__(self, turns: Turns, name: str) -> None:
        self._turns, self._name = turns, name
        self._hold = InterruptHold()

    def __enter__(self) -> None:
        call = sys._getframe(1)
        self._hold.begin(call)
        try:
            self._turns.take(self._name, call, self._hold)
            try:
                self._turns.begin(self._name)
            except BaseException:
                self._turns.give_back()
                raise
        except BaseException:
            self._hold.end()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._turns.end()
        finally:
            self._turns.give_back()
            self._turns.end_if_due(self._name)
            self._hold.end()

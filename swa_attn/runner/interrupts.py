"""Ctrl-C waits until the engine is between two changes."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


def is_running(call: FrameType, top: FrameType | None) -> bool:
    """Whether `call` is `top` or one of its callers."""
    while top is not None and top is not call:
        top = top.f_back
    return top is not None


class InterruptHold:
    """While its `with` block runs in the main thread, the first SIGINT is kept and delivered at the end of the block.

    The second one passes at once, for a block that never ends. Handlers that Python did not install, and the default of
    other programs (ignore, die), stay as they are; so does everything in other threads, which get no signals. Blocks nest:
    the outermost one holds, and where that is `lifted`, the outermost one within. Should an exception cut `__exit__`
    itself short, the handler that stays behind sees that the call it was holding for is over, and passes every signal on.
    """

    def __init__(self) -> None:
        self._previous: Callable[[int, FrameType | None], object] | None = None
        self._call: FrameType | None = None
        self._held: int | None = None
        self._lifted = False
        self._outer: InterruptHold | None = None  # that holds instead of this one

    def begin(self, call: FrameType) -> None:
        """Hold from now on, until `end`, for the running function `call`."""
        if threading.current_thread() is not threading.main_thread():
            return
        current = signal.getsignal(signal.SIGINT)
        while isinstance(current, InterruptHold) and not current.holds_for(call):
            current = current._previous  # left behind
        if isinstance(current, InterruptHold) and not current._lifted:
            self._outer = current
        elif callable(current):
            self._previous, self._call = current, call
            signal.signal(signal.SIGINT, self)

    def end(self) -> None:
        """Stop holding, and deliver what was held."""
        if self._previous is not None:
            current = signal.signal(signal.SIGINT, self._previous)
            if current is not self:  # the program has installed another one meanwhile
                signal.signal(signal.SIGINT, current)
        self._call = self._outer = None
        self.deliver()

    def deliver(self) -> None:
        """The block may be interrupted here. Raises whatever the handler raises, usually KeyboardInterrupt."""
        if self._held is not None:
            number, self._held = self._held, None
            self._previous(number, sys._getframe())

    def deliver_outermost(self) -> None:
        """As `deliver`, also where an outer block holds for this one. For waits, in which no block changes anything."""
        (self._outer or self).deliver()

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Somebody else's code runs here: a SIGINT is for them."""
        self._lifted = True
        try:
            yield
        finally:
            self._lifted = False

    def holds_for(self, top: FrameType | None) -> bool:
        """Whether the call that this was begun for is `top` or one of its callers."""
        return self._call is not None and is_running(self._call, top)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self._held is None and not self._lifted and self.holds_for(frame):
            self._held = number
        else:
            self._held = None
            self._previous(number, frame)

    def __enter__(self) -> "InterruptHold":
        self.begin(sys._getframe(1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

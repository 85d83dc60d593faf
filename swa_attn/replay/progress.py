"""How far a long run has come, on standard error."""

import sys
import time

SECONDS_BETWEEN_LINES = 15.0  # where nobody watches a terminal
SECONDS_BETWEEN_UPDATES = 0.5


class Progress:
    """One line that is written over on a terminal; a line now and then elsewhere; nothing when `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._interval = SECONDS_BETWEEN_UPDATES if self._terminal else SECONDS_BETWEEN_LINES

    def __call__(self, what: str, total: int):
        """A function to call with the number of requests done so far."""
        begun = last = time.monotonic()

        def tick(done: int) -> None:
            nonlocal last
            if self._quiet:
                return
            now = time.monotonic()
            if done == total and last > begun and self._terminal:
                print("\r\033[K", end="", file=sys.stderr, flush=True)
            elif now - last >= self._interval:
                last = now
                line = f"{what}: {done:,} of {total:,} requests, {60 * done / (now - begun):,.0f} per minute"
                print(f"\r\033[K{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
                sys.stderr.flush()

        return tick

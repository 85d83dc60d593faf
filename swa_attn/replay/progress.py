"""How far a long run has come, on standard error."""

import sys
import time
from collections.abc import Callable

SECONDS_BETWEEN_LINES = 15.0  # where nobody watches a terminal
SECONDS_BETWEEN_UPDATES = 0.5


class Progress:
    """One line that is written over on a terminal; a line now and then elsewhere; nothing when `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        terminal = sys.stderr.isatty()
        self._before, self._after = ("\r\033[K", "") if terminal else ("", "\n")
        self._interval = SECONDS_BETWEEN_UPDATES if terminal else SECONDS_BETWEEN_LINES

    def __call__(self, what: str, total: int) -> Callable[[int], None]:
        """A function to call with the number of requests done so far."""
        begun = last = time.monotonic()

        def tick(done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if self._quiet or (now - last < self._interval and done < total):
                return
            if done < total:
                self._print(f"{what}: {done:,} of {total:,} requests, {60 * done / (now - begun):,.0f} per minute")
            elif last > begun and not self._after:
                self._print("")  # what was written over and over goes, for the results
            last = now

        return tick

    def _print(self, line: str) -> None:
        print(f"{self._before}{line}", end=self._after, file=sys.stderr, flush=True)

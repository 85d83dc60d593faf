"""A bounded pool of threads for blocking I/O, reads before writes."""

import logging
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable

from .buffers import Staging

logger = logging.getLogger(__name__)

Job = Callable[[Staging], None]

_FRAMES_SHOWN = 8


def describe(error: BaseException) -> str:
    """An exception's type and where it came from. Its message may quote anything, a password too, and is left out."""
    frames = "".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES_SHOWN))
    return f"{type(error).__name__}\n{frames}".rstrip()


class _Queue:
    """What threads and pool share. Threads do not hold the pool, so that one nobody closed can be collected."""

    def __init__(self, max_writers: int) -> None:
        self.changed = threading.Condition()
        self.reads: deque[Job] = deque()
        self.writes: deque[tuple[Job, int]] = deque()
        self.write_bytes = 0  # waiting and running
        self.writers = 0
        self.max_writers = max_writers
        self.closing = False
        self.failed = 0

    def close(self) -> None:
        with self.changed:
            self.closing = True
            self.changed.notify_all()

    def _next(self) -> tuple[Job, int | None] | None:
        """A job and, for a write, its bytes; None when there is nothing left to do."""
        with self.changed:
            while True:
                if self.reads:
                    return self.reads.popleft(), None
                if self.writes and self.writers < self.max_writers:
                    self.writers += 1
                    return self.writes.popleft()
                if self.closing and not self.writes:
                    return None
                self.changed.wait()

    def work(self, staging: Staging) -> None:
        while (found := self._next()) is not None:
            job, nbytes = found
            try:
                job(staging)
            except BaseException as error:  # of whatever kind: a thread less would be missed by every later job
                with self.changed:
                    self.failed += 1
                logger.error("a job on %s raised %s", threading.current_thread().name, describe(error))
            finally:
                if nbytes is not None:
                    with self.changed:
                        self.writers -= 1
                        self.write_bytes -= nbytes
                        self.changed.notify_all()
            del job, found  # an idle thread must not keep the caller's buffers alive


class WorkerPool:
    """`workers` threads, of which at most `max_writers` write at a time. What does not fit the queue is refused, so that
    a slow medium cannot hold the caller's memory without bound. A job that raises is logged and counted; its thread
    goes on with the next one."""

    def __init__(self, name: str, workers: int, max_writers: int, max_reads: int, max_write_bytes: int) -> None:
        self._max_reads = max_reads
        self._max_write_bytes = max_write_bytes
        self._queue = queue = _Queue(max_writers)
        self._threads = [
            threading.Thread(target=queue.work, args=(Staging(),), name=f"{name}-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()
        # Not at exit, when threads end by themselves: a forked child would wait for a lock that nobody releases there.
        weakref.finalize(self, queue.close).atexit = False

    @property
    def failed_jobs(self) -> int:
        """Jobs that raised."""
        return self._queue.failed

    def submit_read(self, job: Job) -> bool:
        queue = self._queue
        with queue.changed:
            if queue.closing or len(queue.reads) >= self._max_reads:
                return False
            queue.reads.append(job)
            queue.changed.notify()
        return True

    def submit_write(self, job: Job, nbytes: int) -> bool:
        """One write is always accepted, whatever its size."""
        queue = self._queue
        with queue.changed:
            if queue.closing or (queue.write_bytes and queue.write_bytes + nbytes > self._max_write_bytes):
                return False
            queue.write_bytes += nbytes
            queue.writes.append((job, nbytes))
            queue.changed.notify()
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Finishes what was accepted. False if a thread was still busy after `timeout` seconds."""
        self._queue.close()
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

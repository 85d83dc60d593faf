"""Streams whose work is done as late as the events that others wait for allow: what a GPU may do at worst."""

import random
from collections import deque
from contextlib import contextmanager

from swa_attn.kvcache import stream_mover
from swa_attn.kvcache.stream_mover import StreamMover, Streams


class Event:
    def __init__(self, stream: "Stream | None") -> None:
        self.stream = stream
        self.done = stream is None

    def query(self) -> bool:
        """Now and then a stream gets on with its work while the host looks."""
        if not self.done and self.stream.random.random() < 0.3:
            self.stream.run_until(self)
        return self.done


class Stream:
    """Work in order; nothing of it happens before somebody waits for an event, or looks at one in luck."""

    def __init__(self, generator: random.Random) -> None:
        self.random = generator
        self.work: deque = deque()

    def wait_event(self, event: Event) -> None:
        self.work.append(event)

    def record_event(self) -> Event:
        event = Event(self)
        self.work.append(event)
        return event

    def run_until(self, event: Event) -> None:
        while not event.done:
            item = self.work.popleft()
            if not isinstance(item, Event):
                item()
            elif item.stream is self:
                item.done = True
            elif not item.done:
                item.stream.run_until(item)


class Current:
    """The model's stream: a CPU does its work at once, so its events have happened, and waiting is doing."""

    def record_event(self) -> Event:
        return Event(None)

    def wait_event(self, event: Event) -> None:
        if not event.done:
            event.stream.run_until(event)


class LazyStreams:
    def __init__(self, monkeypatch, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.copies = 0
        self._used: Stream | None = None
        copy_pages = stream_mover.copy_pages

        def later(*args, **scales) -> None:
            self.copies += 1
            self._used.work.append(lambda: copy_pages(*args, **scales))

        monkeypatch.setattr(stream_mover, "copy_pages", later)

    def mover(self, device, host, store, *watch) -> StreamMover:
        current = Current()
        streams = Streams(lambda: Stream(self.random), lambda: current, self._use)
        return StreamMover(device, host, store, streams, *watch)

    @contextmanager
    def _use(self, stream: Stream):
        self._used = stream
        yield
        self._used = None

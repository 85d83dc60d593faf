"""Kills a process that writes, again and again, and looks at what it left.

    python tests/kvcache/store/crash.py [--kills N] [--seed S] [--directory DIR]

Each round forks a writer, kills it with SIGKILL at a random moment (from its start, through opening, to well into its
writes), opens the directory anew and reads every record found there. Prints a JSON summary and fails if a wrong record was
served, an acknowledged one is gone that nothing pushed out, or a slot or file leaked. Every second writer writes page by
page, so that kills tear records.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from store_faults import content, key_of

from swa_attn.kvcache.store import SlabOptions, SlabStore, aligned_empty
from swa_attn.kvcache.store.buffers import ALIGNMENT
from swa_attn.kvcache.store.file_io import FileIO

OPTIONS = SlabOptions(capacity_bytes=4 << 20, segment_bytes=1 << 20, workers=4, max_writers=3)
FRESH_EVERY = 10  # rounds on one directory
OPENED = (1 << 64) - 1  # what a writer says before its first record
RECENT = 3  # acknowledged last: too few to be pushed out by what followed


class PagewiseIO(FileIO):
    """Writes one page per system call, payload before header in every second write."""

    def write(self, fd, pieces, offset):
        pages = [piece[i : i + ALIGNMENT] for piece in pieces for i in range(0, piece.nbytes, ALIGNMENT)]
        order = list(enumerate(pages))
        if offset // ALIGNMENT % 2:
            order.reverse()
        for number, page in order:
            super().write(fd, [page], offset + number * ALIGNMENT)
        return sum(piece.nbytes for piece in pieces)


def size_of(i: int) -> int:
    return (20_000, 65_536, 100_001, 250_000)[i % 4]


def write_until_killed(directory: Path, first: int, acknowledge: int, io: FileIO) -> None:
    """Puts records `first`, `first` + 1, ... and writes the number of each to the pipe once it is stored."""
    store = SlabStore(directory, OPTIONS, namespace=b"crash", io=io)
    os.write(acknowledge, OPENED.to_bytes(8, "little"))
    waiting = []
    for i in range(first, first + 10_000):
        future = store.put(key_of(i), [content(key_of(i), size_of(i))])
        waiting.append((i, future))
        while waiting and (len(waiting) > 4 or waiting[0][1].done()):
            number, done = waiting.pop(0)
            if done.result():
                os.write(acknowledge, number.to_bytes(8, "little"))


def one_kill(directory: Path, first: int, seconds: float, opened: bool, io: FileIO) -> list[int]:
    """Kills a writer after `seconds`, of its life or, with `opened`, of its writing. Returns the numbers that it
    acknowledged."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            write_until_killed(directory, first, write_end, io)
        finally:
            os._exit(1)
    os.close(write_end)
    data = os.read(read_end, 8) if opened else b""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        data += pipe.read()
    numbers = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    return [number for number in numbers if number != OPENED]


def inspect(directory: Path, acknowledged: list[int], totals: Counter) -> float:
    """Reads everything that the directory holds; returns the seconds that opening took."""
    start = time.perf_counter()
    with SlabStore(directory, OPTIONS, namespace=b"crash") as store:
        seconds = time.perf_counter() - start
        engine = store._engine
        entries = list(engine._index._entries.values())
        for entry in entries:
            into = aligned_empty(entry.length)
            hit = store.get(entry.key, [into]).result(30)
            right = hit and np.array_equal(into, content(entry.key, entry.length))
            totals["right" if right else "wrong" if hit else "detected"] += 1
        for i in acknowledged[-RECENT:]:
            into = aligned_empty(size_of(i))
            hit = store.get(key_of(i), [into]).result(30)
            totals["acknowledged"] += 1
            totals["lost"] += not (hit and np.array_equal(into, content(key_of(i), size_of(i))))
        with engine._lock:
            engine._index.check(engine._directory.segments)
        totals["leaked_files"] += len(list(directory.iterdir())) - OPTIONS.capacity_bytes // OPTIONS.segment_bytes
        totals["internal"] += store.stats().misses.get("internal", 0)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where to make the store (default: a temporary directory)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    totals: Counter = Counter(dict.fromkeys(("right", "wrong", "detected", "lost"), 0))
    slowest = 0.0
    base = Path(tempfile.mkdtemp(dir=args.directory))
    directory = base / "store"
    try:
        for kill in range(args.kills):
            if kill % FRESH_EVERY == 0:
                shutil.rmtree(directory, ignore_errors=True)
            io = PagewiseIO() if kill % 2 else FileIO()
            seconds, opened = rng.uniform(0.0, 0.06), rng.random() < 0.7
            acknowledged = one_kill(directory, kill * 10_000, seconds, opened, io)
            totals["kills_before_a_record"] += not acknowledged
            totals["written"] += len(acknowledged)
            slowest = max(slowest, inspect(directory, acknowledged, totals))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(json.dumps({"kills": args.kills, "seed": args.seed, **totals, "slowest_open_seconds": round(slowest, 4)}))
    bad = totals["wrong"] + totals["lost"] + totals["leaked_files"] + totals["internal"]
    return 1 if bad or not totals["right"] else 0


if __name__ == "__main__":
    sys.exit(main())

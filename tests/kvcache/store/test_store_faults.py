"""Whatever happens to the medium: what is served is right, nothing raises into a request, and nothing leaks."""

import os
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_faults import FaultyIO, content, key_of

from swa_attn.kvcache.store import SlabOptions, SlabStore, aligned_empty

pytest.importorskip("xxhash", reason="xxhash is not installed: pip install 'swa-attn[disk]'")

SMALL, LARGE = 8192, 40000
SEGMENT = 4096 + 4 * (4096 + 40960)
# One worker, so that operations have the same order in every run; breakers that reopen at once.
OPTIONS = SlabOptions(
    capacity_bytes=2 * SEGMENT,
    segment_bytes=SEGMENT,
    size_classes=(SMALL, 40960),
    workers=1,
    max_writers=1,
    backoff=0.0,
    max_backoff=0.0,
)


@pytest.fixture
def tmp_path():
    """In memory where possible: these tests open and close stores a thousand times, and the faults are ours anyway."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


class Outcome(Counter):
    """wrong, right, missed, refused, plus the store's own counts of misses."""


def fetch(store, key: bytes, nbytes: int, outcome: Outcome) -> bool:
    into = aligned_empty(nbytes)
    into[:] = 0xEE
    hit = store.get(key, [into]).result(10)
    if not hit:
        outcome["missed"] += 1
    elif np.array_equal(into, content(key, nbytes)):
        outcome["right"] += 1
    else:
        outcome["wrong"] += 1
    return hit


def check_slots(store) -> None:
    engine = store._engine
    with engine._lock:
        engine._index.check(engine._directory.segments)


def scripted(path, io) -> Outcome:
    """Opens, writes two sizes past the capacity, reads, deletes, touches, reopens, reads: every kind of operation."""
    outcome = Outcome()
    sizes = {i: (SMALL if i % 3 else LARGE) for i in range(12)}
    for second in (False, True):
        try:
            store = SlabStore(path, OPTIONS, namespace=b"model", io=io)
        except OSError:  # opening may raise: the tier is not there from the start
            outcome["not opened"] += 1
            continue
        with store:
            if not second:
                for i, nbytes in sizes.items():
                    ok = store.put(key_of(i), [content(key_of(i), nbytes)]).result(10)
                    outcome["refused"] += not ok
                    if i == 6:
                        fetch(store, key_of(0), sizes[0], outcome)
                        store.delete(key_of(1))
                        store.touch(key_of(2))
            for i, nbytes in sizes.items():
                fetch(store, key_of(i), nbytes, outcome)
            check_slots(store)
            stats = store.stats()
            outcome.update(stats.misses)
            assert stats.refused.get("internal", 0) == stats.misses.get("internal", 0) == 0
    return outcome


def test_the_workload_without_faults(tmp_path):
    outcome = scripted(tmp_path, FaultyIO())
    assert outcome["wrong"] == outcome["refused"] == outcome["not opened"] == 0
    assert outcome["right"] >= 18
    assert set(outcome) <= {"right", "missed", "absent", "wrong", "refused"}


@pytest.mark.parametrize("fault", [*FaultyIO.RAISING, *FaultyIO.WRITING])
def test_the_nth_operation_fails(tmp_path, fault):
    """For every N of the workload."""
    rehearsal = FaultyIO()
    scripted(tmp_path / "rehearsal", rehearsal)
    assert len(rehearsal.operations) > 60
    for n, call in enumerate(rehearsal.operations):
        io = FaultyIO({n: fault}, slow_seconds=0.001)
        outcome = scripted(tmp_path / f"{n}", io)
        io.flush()
        assert io.hit == ([(call, fault)] if io.can_happen(call, fault) else [])
        assert outcome["wrong"] == 0, (n, io.hit)
        assert outcome["right"] or outcome["not opened"], (n, io.hit)
    assert not [t for t in threading.enumerate() if t.name.startswith("swa-store")]


DAMAGES = ("torn_512", "torn_4096", "lost", "reordered", "flip", "astray")
RECORDS = 6


def six_records(store) -> None:
    for i in range(RECORDS):
        assert store.put(key_of(i), [content(key_of(i), LARGE)]).result(10)


def record_writes(path) -> list[int]:
    """The numbers of the operations that write the six records."""
    io = FaultyIO()
    with SlabStore(path, OPTIONS, namespace=b"m", io=io) as store:
        six_records(store)
    return io.record_writes


def damaged_record(path, n: int, fault: str) -> bool:
    """Damages the record that operation n writes, and reads all. Whether that one missed; checks that it was counted, and
    that the others are right."""
    outcome, io = Outcome(), FaultyIO({n: fault})
    with SlabStore(path, OPTIONS, namespace=b"m", io=io) as store:
        six_records(store)
        damaged = io.record_writes.index(n)
        hits = [fetch(store, key_of(i), LARGE, outcome) for i in range(RECORDS)]
        io.flush()
        found = sum(store.stats().misses.get(reason, 0) for reason in ("corrupt", "foreign", "truncated"))
        assert io.hit and found == outcome["missed"] and outcome["wrong"] == 0
        for i, hit in enumerate(hits):
            # A record that went astray ran over its neighbour, unless that was written later.
            assert hit or i == damaged or (fault == "astray" and i == damaged + 1)
        check_slots(store)
    return not hits[damaged]


@pytest.mark.parametrize("fault", DAMAGES)
def test_every_damaged_write_is_a_counted_miss(tmp_path, fault):
    writes = record_writes(tmp_path / "rehearsal")
    assert len(writes) == RECORDS
    missed = [damaged_record(tmp_path / f"{n}", n, fault) for n in writes]
    # What is only reordered is there after the next write.
    assert missed == ([False] * (RECORDS - 1) + [True] if fault == "reordered" else [True] * RECORDS)


def test_a_slot_that_fails_twice_is_retired(tmp_path):
    options = SlabOptions(
        capacity_bytes=SEGMENT, segment_bytes=SEGMENT, size_classes=(40960,), workers=1, failures_to_trip=100
    )
    io = FaultyIO()
    with SlabStore(tmp_path, options, namespace=b"m", io=io) as store:
        io.always["write"] = "flip"
        outcome = Outcome()
        for i in range(30):
            store.put(key_of(i), [content(key_of(i), LARGE)]).result(10)
            fetch(store, key_of(i), LARGE, outcome)
        stats = store.stats()
        assert stats.retired_slots == 4 and stats.misses["corrupt"] == 8 and stats.refused["full"] == 22
        assert outcome["right"] == outcome["wrong"] == 0
        check_slots(store)


TRIPPING = SlabOptions(
    capacity_bytes=3 * SEGMENT,
    segment_bytes=SEGMENT,
    size_classes=(40960,),
    workers=2,
    max_writers=1,
    backoff=0.05,
    max_backoff=0.1,
)
SLOW = replace(TRIPPING, slow_seconds=0.3)


def until(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("fault", ["ENOSPC", "EROFS", "ENODEV", "slow"])
def test_writes_trip_while_reads_go_on_and_come_back(tmp_path, fault):
    io = FaultyIO(slow_seconds=0.4)
    with SlabStore(tmp_path, SLOW if fault == "slow" else TRIPPING, namespace=b"m", io=io) as store:
        outcome = Outcome()
        assert store.put(key_of(0), [content(key_of(0), LARGE)]).result(10)
        io.always["write"] = fault
        for i in range(1, 8):
            store.put(key_of(i), [content(key_of(i), LARGE)]).result(10)
        assert store.stats().write_state != "closed" and store.stats().refused["tripped"] >= 1
        assert fetch(store, key_of(0), LARGE, outcome)
        assert store.stats().read_state == "closed"
        del io.always["write"]
        assert until(lambda: store.put(key_of(9), [content(key_of(9), LARGE)]).result(10))
        assert store.stats().write_state == "closed" and fetch(store, key_of(9), LARGE, outcome)
        assert outcome["wrong"] == 0
        check_slots(store)


def test_a_gone_disk_trips_reads_and_comes_back(tmp_path):
    io = FaultyIO()
    with SlabStore(tmp_path, TRIPPING, namespace=b"m", io=io) as store:
        outcome = Outcome()
        for i in range(8):
            assert store.put(key_of(i), [content(key_of(i), LARGE)]).result(10)
        calls = ("read", "write", "status_at", "names", "open", "make_directory")
        io.always.update(dict.fromkeys(calls, "EIO"))
        for i in range(8):
            assert not fetch(store, key_of(i), LARGE, outcome)
        stats = store.stats()
        assert stats.misses["io_error"] == 3 and stats.misses["tripped"] == 5 and stats.read_state != "closed"
        assert not store.contains(key_of(7))
        io.always.clear()
        # What was not asked for while the disk was away is still there.
        assert until(lambda: store.contains(key_of(7)) and fetch(store, key_of(7), LARGE, outcome))
        assert [fetch(store, key_of(i), LARGE, outcome) for i in range(8)].count(True) == 5
        assert outcome["wrong"] == 0 and store.stats().read_state == "closed"
        check_slots(store)


def test_files_replaced_while_the_disk_was_gone_are_opened_anew(tmp_path):
    io = FaultyIO()
    place = tmp_path / "mount"
    with SlabStore(place, TRIPPING, namespace=b"m", io=io) as store:
        outcome = Outcome()
        assert store.put(key_of(0), [content(key_of(0), LARGE)]).result(10)
        io.always.update(dict.fromkeys(("read", "write"), "ENODEV"))
        for i in range(1, 5):
            store.put(key_of(i), [content(key_of(i), LARGE)]).result(10)
        place.rename(tmp_path / "broken")
        io.always.clear()
        assert until(lambda: store.put(key_of(9), [content(key_of(9), LARGE)]).result(10))
        assert len(list(place.glob("*.slab"))) == 3
        assert not fetch(store, key_of(0), LARGE, outcome) and fetch(store, key_of(9), LARGE, outcome)
        check_slots(store)
    with SlabStore(place, TRIPPING, namespace=b"m") as store:
        assert fetch(store, key_of(9), LARGE, Outcome())


def test_a_stuck_operation_trips_without_returning(tmp_path):
    io = FaultyIO(slow_seconds=3.0)
    with SlabStore(tmp_path, SLOW, namespace=b"m", io=io) as store:
        for i in range(3):
            assert store.put(key_of(i), [content(key_of(i), LARGE)]).result(10)
        io.always["read"] = "slow"
        first = store.get(key_of(0), [aligned_empty(LARGE)])
        time.sleep(0.6)
        assert not store.get(key_of(1), [aligned_empty(LARGE)]).result(10)
        assert not first.done() and store.stats().misses == {"tripped": 1}
        assert first.result(10)
        io.always.clear()
        assert until(lambda: store.get(key_of(2), [aligned_empty(LARGE)]).result(10))


def test_closing_does_not_wait_for_ever(tmp_path):
    io = FaultyIO(slow_seconds=1.5)
    store = SlabStore(tmp_path, replace(TRIPPING, close_seconds=0.2), namespace=b"m", io=io)
    assert store.put(key_of(0), [content(key_of(0), LARGE)]).result(10)
    io.always["read"] = "slow"
    stuck = store.get(key_of(0), [aligned_empty(LARGE)])
    assert until(lambda: io.hit)
    store.close()
    assert not stuck.done()
    assert stuck.result(10), "what had begun still ends"


def test_a_read_that_waits_too_long_is_a_miss_and_full_queues_refuse(tmp_path):
    io = FaultyIO(slow_seconds=0.2)
    options = SlabOptions(
        capacity_bytes=3 * SEGMENT,
        segment_bytes=SEGMENT,
        size_classes=(40960,),
        workers=1,
        max_writers=1,
        max_waiting_reads=2,
        max_pending_write_bytes=2 * LARGE,
    )
    with SlabStore(tmp_path, options, namespace=b"m", io=io) as store:
        for i in range(4):
            assert store.put(key_of(i), [content(key_of(i), LARGE)]).result(10)
        io.always.update(read="slow", write="slow")
        into = [aligned_empty(LARGE) for _ in range(4)]
        first = store.get(key_of(0), [into[0]])
        assert until(lambda: io.hit)
        late = store.get(key_of(1), [into[1]], timeout=0.05)
        waiting = store.get(key_of(2), [into[2]])
        assert not store.get(key_of(3), [into[3]]).result(0)
        puts = [store.put(key_of(i), [content(key_of(i), LARGE)]) for i in range(10, 13)]
        assert puts[2].done() and not puts[2].result(0)
        assert first.result(10) and not late.result(10) and waiting.result(10)
        assert puts[0].result(10) and puts[1].result(10)
        stats = store.stats()
        assert stats.misses == {"busy": 1, "late": 1} and stats.refused == {"busy": 1}


def test_a_disk_that_is_full_at_the_start_leaves_a_store_that_refuses_and_recovers(tmp_path):
    io = FaultyIO(always={"allocate": "ENOSPC"})
    with SlabStore(tmp_path, TRIPPING, namespace=b"m", io=io) as store:
        assert store.stats().capacity_bytes == 0 and not list(tmp_path.glob("*.slab"))
        assert not store.put(key_of(0), [content(key_of(0), LARGE)]).result(10)
        io.always.clear()
        assert until(lambda: store.put(key_of(0), [content(key_of(0), LARGE)]).result(10))
        assert fetch(store, key_of(0), LARGE, Outcome()) and store.stats().capacity_bytes == 3 * SEGMENT


def test_an_unexpected_exception_is_a_miss_and_the_thread_lives(tmp_path, caplog):
    class Buggy(FaultyIO):
        def read(self, fd, pieces, offset):
            if self.always:
                raise ZeroDivisionError
            return super().read(fd, pieces, offset)

    io = Buggy()
    with SlabStore(tmp_path, TRIPPING, namespace=b"m", io=io) as store:
        assert store.put(key_of(0), [content(key_of(0), LARGE)]).result(10)
        io.always["read"] = "bug"
        assert not fetch(store, key_of(0), LARGE, Outcome())
        io.always.clear()
        assert store.stats().misses == {"internal": 1} and "ZeroDivisionError" in caplog.text
        assert fetch(store, key_of(0), LARGE, Outcome())

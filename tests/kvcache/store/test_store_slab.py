"""The slab store on a healthy disk: what comes back, what is evicted, and what the files say."""

import errno
import gc
import os
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from store_faults import content, key_of

from swa_attn.kvcache.store import SlabOptions, SlabStore, aligned_empty
from swa_attn.kvcache.store import record as record_module
from swa_attn.kvcache.store.breaker import Breaker
from swa_attn.kvcache.store.buffers import ALIGNMENT
from swa_attn.kvcache.store.file_io import FileIO
from swa_attn.kvcache.store.record import HEADER_BYTES, Header, Space
from swa_attn.kvcache.store.segment import Format

pytest.importorskip("xxhash", reason="xxhash is not installed: pip install 'swa-attn[disk]'")

SLOT = 32768
SEGMENT = ALIGNMENT + 4 * (ALIGNMENT + SLOT)
OPTIONS = SlabOptions(2 * SEGMENT, SEGMENT, (SLOT,), workers=3)


def open_store(path, options=OPTIONS, namespace=b"model", **rest) -> SlabStore:
    return SlabStore(path, options, namespace=namespace, **rest)


def put(store, i: int, nbytes: int = SLOT) -> bool:
    return store.put(key_of(i), [content(key_of(i), nbytes)]).result(10)


def get(store, i: int, nbytes: int = SLOT) -> bool:
    """Whether it hit; a hit is right."""
    into = np.full(nbytes, 0xEE, np.uint8)
    hit = store.get(key_of(i), [into]).result(10)
    assert not hit or np.array_equal(into, content(key_of(i), nbytes))
    return hit


def held(store, numbers) -> list[int]:
    return [i for i in numbers if store.contains(key_of(i))]


def check_slots(store) -> None:
    engine = store._engine
    with engine._lock:
        engine._index.check(engine._directory.segments)


def store_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("swa-store")]


# Buffers


class WatchingIO(FileIO):
    """Remembers the addresses that were given to the kernel."""

    def __init__(self) -> None:
        self.addresses: list[set[int]] = []

    def _watch(self, pieces) -> None:
        assert all(
            piece.__array_interface__["data"][0] % ALIGNMENT == 0 == piece.nbytes % ALIGNMENT for piece in pieces
        )
        self.addresses.append({piece.__array_interface__["data"][0] for piece in pieces})

    def read(self, fd, pieces, offset):
        self._watch(pieces)
        return super().read(fd, pieces, offset)

    def write(self, fd, pieces, offset):
        self._watch(pieces)
        return super().write(fd, pieces, offset)


def tensors(generator, aligned: bool) -> list[torch.Tensor]:
    k = torch.randn(2, 16, 4, 32, generator=generator).bfloat16()
    v = torch.randn(2, 16, 4, 16, generator=generator).half()
    if not aligned:
        return [k, v]
    places = [torch.from_numpy(aligned_empty(x.nbytes)).view(x.dtype).view(x.shape) for x in (k, v)]
    return [place.copy_(x) for place, x in zip(places, (k, v))]


@pytest.mark.parametrize("aligned", [True, False])
def test_tensors_come_back_bit_for_bit(tmp_path, aligned):
    io = WatchingIO()
    with open_store(tmp_path, io=io) as store:
        sources = tensors(torch.Generator().manual_seed(0), aligned)
        sources[0][0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -0.0])
        targets = tensors(torch.Generator().manual_seed(1), aligned)
        assert store.put(key_of(0), sources).result(10) and store.get(key_of(0), targets).result(10)
        for source, target in zip(sources, targets):
            assert torch.equal(source.view(torch.int16), target.view(torch.int16))
        # Aligned memory is handed to the kernel as it is.
        assert ({x.data_ptr() for x in targets} <= io.addresses[-1]) == aligned
        assert ({x.data_ptr() for x in sources} <= io.addresses[-2]) == aligned


@pytest.mark.parametrize("nbytes", [1, 4095, 4096, 4097, 8191, 20000, SLOT - 1, SLOT])
@pytest.mark.parametrize("split", [(1,), (2,), (3,), (1, 2)])
def test_every_length_in_any_pieces(tmp_path, nbytes, split):
    """Written from one buffer and read into pieces, aligned or not, and the other way round."""
    data = content(key_of(0), nbytes)
    bounds = [0, *(min(nbytes, ALIGNMENT * s) for s in split), nbytes]
    cuts = list(pairwise(bounds))
    with open_store(tmp_path) as store:
        into = aligned_empty(nbytes)
        assert store.put(key_of(0), [data]).result(10)
        assert store.get(key_of(0), [into[a:b] for a, b in cuts]).result(10) and np.array_equal(into, data)
        odd = bytearray(nbytes)
        assert store.put(key_of(1), [memoryview(data.tobytes())[a:b] for a, b in cuts]).result(10)
        assert store.get(key_of(1), [memoryview(odd)[a:b] for a, b in cuts]).result(10) and bytes(odd) == data.tobytes()


def test_thousands_of_pieces(tmp_path):
    data = content(key_of(0), 3000)
    with open_store(tmp_path) as store:
        assert store.put(key_of(0), [data[i : i + 1] for i in range(3000)]).result(10)
        into = np.zeros(3000, np.uint8)
        assert store.get(key_of(0), [into[i : i + 1] for i in range(3000)]).result(10) and np.array_equal(into, data)


def test_wrong_arguments_raise_at_the_call(tmp_path):
    with open_store(tmp_path) as store:
        good = bytearray(10)
        for key in (b"short", bytes(33), "text", None):
            with pytest.raises(ValueError, match="key: expected 16 to 32 bytes"):
                store.put(key, [good])
        with pytest.raises(TypeError, match="buffers: expected a sequence of buffers, got one bytearray"):
            store.put(key_of(0), good)
        with pytest.raises(ValueError, match="buffers: expected at least one byte"):
            store.put(key_of(0), [b"", torch.empty(0)])
        with pytest.raises(
            ValueError, match=r"buffers\[1\]: expected a contiguous CPU tensor, got cpu, strides \(1, 3\)"
        ):
            store.put(key_of(0), [good, torch.zeros(2, 3).t()])
        with pytest.raises(ValueError, match=r"buffers\[0\]: expected contiguous memory"):
            store.put(key_of(0), [np.zeros((4, 4))[:, 1]])
        with pytest.raises(ValueError, match=r"buffers\[0\]: expected writable memory, got read-only bytes"):
            store.get(key_of(0), [b"constant"])
    for options, text in (
        ({"capacity_bytes": SEGMENT - 1}, "capacity_bytes: expected at least one segment"),
        ({"segment_bytes": SEGMENT + 1}, "segment_bytes: expected a multiple of 4096"),
        ({"size_classes": (SEGMENT,)}, "size_classes: expected sizes from 1 to"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            replace(OPTIONS, **options)
    with pytest.raises(ValueError, match="quota_bytes"):
        open_store(tmp_path, quota_bytes=-1)
    with pytest.raises(TypeError, match="namespace: expected bytes, got str"):
        open_store(tmp_path, namespace="text")


def test_without_xxhash_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "xxhash", None)
    with pytest.raises(ModuleNotFoundError, match=r"swa-attn\[disk\]"):
        open_store(tmp_path)


# Contents


def test_a_key_is_written_once_and_a_miss_is_a_miss(tmp_path):
    with open_store(tmp_path) as store:
        assert not store.contains(key_of(0)) and not get(store, 0)
        assert put(store, 0) and put(store, 0) and get(store, 0)
        assert not get(store, 0, SLOT - 1)
        store.delete(key_of(0))
        store.delete(key_of(0))
        store.touch(key_of(0))
        assert not store.contains(key_of(0)) and not get(store, 0)
        assert store.put(key_of(1), [bytes(SLOT + 1)]).result(10) is False
        stats = store.stats()
        assert (stats.puts, stats.put_bytes, stats.hits) == (2, SLOT, 1)
        assert stats.misses == {"absent": 2, "size": 1} and stats.refused == {"too_large": 1}
        check_slots(store)


def test_puts_of_one_key_at_the_same_time_share_a_write(tmp_path):
    with open_store(tmp_path) as store:
        futures = [store.put(key_of(0), [content(key_of(0), SLOT)]) for _ in range(20)]
        assert all(future.result(10) for future in futures)
        assert not any(future.cancel() for future in futures)
        assert store.stats().put_bytes == SLOT
        check_slots(store)


def test_the_least_recently_used_goes_first(tmp_path):
    with open_store(tmp_path) as store:
        for i in range(8):
            assert put(store, i)
        store.touch(key_of(0))
        assert get(store, 1)
        for i in range(8, 12):
            assert put(store, i)
        assert held(store, range(12)) == [0, 1, 6, 7, 8, 9, 10, 11]
        assert store.stats().evictions == 4 and store.stats().records == 8
        check_slots(store)


def test_quotas_are_kept_per_namespace(tmp_path):
    slot = SLOT + ALIGNMENT
    with open_store(tmp_path, quota_bytes=3 * slot) as a, a.sibling(namespace=b"other", quota_bytes=2 * slot) as b:
        for i in range(6):
            assert put(a, i) and put(b, i)
        assert held(a, range(6)) == [3, 4, 5] and held(b, range(6)) == [4, 5]
        assert (a.stats().used_bytes, b.stats().used_bytes) == (3 * slot, 2 * slot)
        with a.sibling(namespace=b"none", quota_bytes=slot - 1) as none:
            assert not put(none, 0) and none.stats().refused == {"too_large": 1}
        check_slots(a)


def test_a_quota_holds_under_concurrent_puts(tmp_path):
    slot = SLOT + ALIGNMENT
    with open_store(tmp_path, quota_bytes=3 * slot) as store:
        futures = [store.put(key_of(i), [content(key_of(i), SLOT)]) for i in range(60)]
        assert all(future.result(10) for future in futures)
        assert store.stats().used_bytes <= 3 * slot
        check_slots(store)


def test_slots_of_one_size_give_way_to_another_when_they_are_colder(tmp_path):
    options = SlabOptions(3 * SEGMENT, SEGMENT, (8192, SLOT), workers=1, max_writers=1)
    small_per_segment = (SEGMENT - ALIGNMENT) // (ALIGNMENT + 8192)
    with open_store(tmp_path, options) as store:
        for i in range(3 * small_per_segment):
            assert put(store, i, 8192)
        # No slot of this size exists: the coldest segment goes, and only that one.
        assert put(store, 1000)
        assert held(store, range(3 * small_per_segment)) == list(range(small_per_segment, 3 * small_per_segment))
        # From here on only the large size is used: in time it gets everything.
        for i in range(1001, 1300):
            assert put(store, i)
        assert len(held(store, range(1000, 1300))) == 12 and not held(store, range(3 * small_per_segment))
        check_slots(store)


def test_sizes_without_given_classes_waste_at_most_an_eighth():
    options = SlabOptions(1 << 30, 1 << 30)
    for nbytes in [1, 65536, 65537, 100_000, 1 << 20, (1 << 20) + 1, 3_276_800, 5_000_000, 8 << 20, 39_321_600]:
        payload = options.slot_payload(nbytes)
        assert payload >= nbytes and payload % ALIGNMENT == 0
        assert payload == 65536 or payload <= nbytes * 1.125
    assert options.slot_payload(1 << 30) is None
    assert len({options.slot_payload(n) for n in range(65536, 16 << 20, 4096)}) <= 8 * 8 + 1


# Opening again


def test_records_survive_and_newer_ones_are_younger(tmp_path):
    with open_store(tmp_path) as store:
        for i in range(8):
            assert put(store, i)
    assert not store_threads()
    with open_store(tmp_path) as store:
        assert store.stats().recovered_records == 8 and held(store, range(8)) == list(range(8))
        assert put(store, 8) and held(store, range(9)) == list(range(1, 9))
        assert all(get(store, i) for i in range(1, 9))
        check_slots(store)
    with open_store(tmp_path, replace(OPTIONS, read_only=True)) as store:
        assert held(store, range(9)) == list(range(1, 9)) and all(get(store, i) for i in range(1, 9))
        assert not put(store, 9) and store.stats().refused == {"read_only": 1}


def test_a_file_system_without_direct_io(tmp_path):
    class Buffered(FileIO):
        refused = 0

        def open(self, path, flags):
            if flags & os.O_DIRECT:
                Buffered.refused += 1
                raise OSError(errno.EINVAL, "no direct I/O here")
            return super().open(path, flags)

    with open_store(tmp_path, io=Buffered()) as store:
        assert put(store, 0) and get(store, 0) and Buffered.refused == 2
    with open_store(tmp_path) as store:
        assert get(store, 0)
    with open_store(tmp_path, replace(OPTIONS, direct=False)) as store:
        assert get(store, 0)


def test_a_directory_that_cannot_be_made_raises_when_it_is_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):
        open_store(tmp_path / "file" / "store")
    assert not store_threads()


def test_a_store_is_closed_when_its_last_namespace_is(tmp_path):
    a = open_store(tmp_path)
    b = a.sibling(namespace=b"b")
    assert put(a, 0) and put(b, 0)
    a.close()
    a.close()
    assert not get(a, 0) and not put(a, 0) and not put(a, 1) and get(b, 0)
    assert a.stats().misses["closed"] == 1 and a.stats().refused["closed"] == 2
    b.close()
    assert not store_threads() and not get(b, 0)


def test_closing_finishes_what_was_submitted(tmp_path):
    store = open_store(tmp_path)
    futures = [store.put(key_of(i), [content(key_of(i), SLOT)]) for i in range(40)]
    store.close()
    assert all(future.done() and future.result() for future in futures)
    assert not store_threads()


def test_a_store_that_nobody_closed_ends_its_threads(tmp_path):
    files = len(os.listdir("/proc/self/fd"))
    store = open_store(tmp_path)
    put(store, 0)
    gone = weakref.ref(store)
    del store
    gc.collect()
    end = time.monotonic() + 5
    while store_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert gone() is None and not store_threads() and len(os.listdir("/proc/self/fd")) == files


def test_idle_threads_do_not_keep_buffers(tmp_path):
    with open_store(tmp_path) as store:
        buffer = aligned_empty(SLOT)
        alive = weakref.ref(buffer)
        assert store.put(key_of(0), [buffer]).result(10)
        del buffer
        time.sleep(0.05)
        gc.collect()
        assert alive() is None


# Foreign and damaged files


def segments(path):
    return sorted(path.glob("*.slab"))


def slots_of(path):
    """File, format, and slot numbers, of every segment that is cut."""
    for file in segments(path):
        data = file.read_bytes()
        if (format := Format.unpack(data)) is not None:
            yield file, format, range(format.num_slots)


def rewrite(path, change) -> int:
    """Applies `change` to the header of every record and signs it again; returns how many there were."""
    count = 0
    for file, format, numbers in slots_of(path):
        with file.open("r+b") as f:
            for number in numbers:
                f.seek(format.offset(number))
                if (header := Header.unpack(f.read(HEADER_BYTES))) is not None:
                    f.seek(format.offset(number))
                    f.write(change(header).pack())
                    count += 1
    return count


NAMESPACE = {
    "fingerprint": "weights-1",
    "revision": "a",
    "dtype": "bfloat16",
    "scales": "none",
    "layers": "0:full 1-5:swa",
    "page_size": 64,
    "window": 128,
    "num_kv_heads": 8,
    "head_dim": 192,
    "v_head_dim": 128,
    "tensor_parallel": "0/1",
    "rope": "theta=5e6",
    "sinks": True,
    "value_scale": 0.707,
    "salt": "tenant-1",
}


def namespace(**changed) -> bytes:
    return repr(sorted({**NAMESPACE, **changed}.items())).encode()


@pytest.mark.parametrize("field", NAMESPACE)
def test_any_field_of_the_namespace_changed_is_a_miss(tmp_path, field):
    value = NAMESPACE[field]
    changed = namespace(**{field: not value if isinstance(value, bool) else value * 2})
    with open_store(tmp_path, namespace=namespace()) as store:
        assert put(store, 0)
        with store.sibling(namespace=changed) as other:
            assert not other.contains(key_of(0)) and not get(other, 0)
    with open_store(tmp_path, namespace=changed) as other, other.sibling(namespace=namespace()) as same:
        assert not other.contains(key_of(0)) and not get(other, 0) and other.stats().records == 0
        assert get(same, 0)


def test_layouts_and_tricky_splits_of_namespace_and_layout_are_apart(tmp_path):
    with open_store(tmp_path, namespace=b"ab", layout=b"c") as store:
        assert put(store, 0)
        for names in ({"namespace": b"a", "layout": b"bc"}, {"namespace": b"abc"}, {"namespace": b"ab"}):
            with store.sibling(**names) as other:
                assert not get(other, 0)


@pytest.mark.parametrize(
    "field, value, reason",
    [
        ("space", Space.of(b"other", b""), "foreign"),
        ("space", Space.of(b"model", b"other"), "foreign"),
        ("key", key_of(99), "foreign"),
        ("sequence", 77, "foreign"),
        ("segment", bytes(16), "foreign"),
        ("slot", 3, "foreign"),
        ("length", SLOT - 1, "corrupt"),
        ("checksum", bytes(16), "corrupt"),
    ],
)
def test_any_field_of_the_header_changed_is_a_miss(tmp_path, field, value, reason):
    """With a header that is valid in itself: signed again. Under a running store, and found when it is opened."""
    with open_store(tmp_path) as store:
        assert put(store, 0)
        assert rewrite(tmp_path, lambda header: replace(header, **{field: value})) == 1
        assert not get(store, 0) and store.stats().misses == {reason: 1}
        assert not store.contains(key_of(0)) and put(store, 0) and get(store, 0)
        assert rewrite(tmp_path, lambda header: replace(header, **{field: value})) >= 1
    with open_store(tmp_path) as store:
        if field == "sequence":  # nobody remembers another one
            assert get(store, 0)
        else:
            assert not get(store, 0)
        check_slots(store)


def test_flipped_bits_are_never_served(tmp_path):
    rng = random.Random(0)
    with open_store(tmp_path) as store:
        for i in range(8):
            assert put(store, i)
    files = segments(tmp_path)
    for _ in range(60):
        file, position = rng.choice(files), rng.randrange(SEGMENT)
        with file.open("r+b") as f:
            f.seek(position)
            byte = f.read(1)[0]
            f.seek(position)
            f.write(bytes([byte ^ 1 << rng.randrange(8)]))
    with open_store(tmp_path) as store:
        hits = [get(store, i) for i in range(8)]  # get compares
        assert not all(hits)
        check_slots(store)
        assert all(put(store, i) and get(store, i) for i in range(8))


@pytest.mark.parametrize("keep", [0, 100, ALIGNMENT, ALIGNMENT + 10, 0.3, 0.7])
def test_truncated_files_are_misses_and_are_made_whole(tmp_path, keep):
    with open_store(tmp_path) as store:
        for i in range(8):
            assert put(store, i)
        for file in segments(tmp_path):
            os.truncate(file, int(keep * SEGMENT) if isinstance(keep, float) else keep)
        hits = [get(store, i) for i in range(8)]
        assert hits.count(False) == store.stats().misses["truncated"] >= 4
        check_slots(store)
    with open_store(tmp_path) as store:
        assert all(file.stat().st_size == SEGMENT for file in segments(tmp_path))
        assert sum(get(store, i) for i in range(8)) <= hits.count(True)
        assert all(put(store, 100 + i) for i in range(8)) and all(get(store, 100 + i) for i in range(8))
        check_slots(store)


@pytest.mark.parametrize("junk", [b"", bytes(100), bytes(SEGMENT), b"SWAKVSEG" + os.urandom(500)])
def test_files_without_a_valid_superblock_are_formatted(tmp_path, junk):
    (tmp_path / "segment-000000.slab").write_bytes(junk)
    (tmp_path / "segment-000000.slab").chmod(0o600)
    (tmp_path / "notes.txt").write_bytes(b"not ours")
    with open_store(tmp_path) as store:
        assert all(put(store, i) for i in range(8)) and all(get(store, i) for i in range(8))
        check_slots(store)
    assert (tmp_path / "notes.txt").read_bytes() == b"not ours" and len(segments(tmp_path)) == 2


def test_files_of_a_later_version_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("swa_attn.kvcache.store.segment.VERSION", 2)
    with open_store(tmp_path) as store:
        assert put(store, 0)
    monkeypatch.undo()
    before = [file.read_bytes() for file in segments(tmp_path)]
    with open_store(tmp_path) as store:
        assert not get(store, 0) and all(put(store, i) for i in range(8))
    cut = [file for file, data in zip(segments(tmp_path), before) if data.startswith(b"SWAKVSEG")]
    assert len(cut) == 1 and cut[0].read_bytes() in before
    monkeypatch.setattr(record_module, "VERSION", record_module.VERSION + 1)
    with open_store(tmp_path, replace(OPTIONS, capacity_bytes=4 * SEGMENT)) as store:
        assert store.stats().recovered_records == 0


def test_records_of_an_earlier_formatting_do_not_come_back(tmp_path):
    """A segment cut anew disowns what it held, even where old and new slots begin at the same place."""
    with open_store(tmp_path) as store:
        for i in range(8):
            assert put(store, i)
        engine = store._engine
        for segment in engine._directory.owned:
            engine._index.drop_segment(segment)
            segment.cut(SLOT)
            engine._index.add_segment(segment)
    with open_store(tmp_path) as store:
        assert store.stats().recovered_records == 0 and not any(get(store, i) for i in range(8))


# Many threads


def test_random_traffic_from_many_threads_against_an_oracle(tmp_path):
    """Whatever is interleaved: a hit is right, slots are accounted for, and what nothing pushed out is there."""
    sizes = (5000, 8192, 20_000, SLOT)
    options = SlabOptions(4 * SEGMENT, SEGMENT, (8192, SLOT), workers=4)
    seed = random.randrange(1 << 32)
    print("seed", seed)
    with open_store(tmp_path, options) as store, store.sibling(namespace=b"second", quota_bytes=5 * SLOT) as second:
        users = [store, second]

        def traffic(worker: int) -> int:
            rng, hits = random.Random(seed + worker), 0
            for _ in range(250):
                i = rng.randrange(40)
                nbytes, user = sizes[i % 4], rng.choice(users)
                action = rng.random()
                if action < 0.45:
                    user.put(key_of(i), [content(key_of(i), nbytes)]).result(10)
                elif action < 0.9:
                    hits += get(user, i, nbytes)
                elif action < 0.95:
                    user.touch(key_of(i))
                else:
                    user.delete(key_of(i))
            return hits

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(traffic, range(6))) > 100
        assert store.stats().misses.keys() <= {"absent"} and store.stats().refused.keys() <= {"full"}
        assert second.stats().used_bytes <= 5 * SLOT
        check_slots(store)
        for user in users:
            assert all(put(user, 1000 + i) and get(user, 1000 + i) for i in range(4))
        left = [(user, i) for user in users for i in range(40) if user.contains(key_of(i))]
    with open_store(tmp_path, options) as store, store.sibling(namespace=b"second") as second:
        by_name = dict(zip(users, (store, second)))
        assert all(get(by_name[user], i, sizes[i % 4]) for user, i in left)


# The breaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock) -> Breaker:
    return Breaker("test", threshold=3, slow_seconds=1.0, backoff=2.0, max_backoff=5.0, clock=clock)


def attempt(breaker: Breaker, fail: bool = False) -> str:
    permit = breaker.permit()
    if permit is None:
        return "refused"
    try:
        with breaker.attempt(permit):
            if fail:
                raise OSError
    except OSError:
        return "failed"
    return "done"


def test_breaker_trips_after_failures_in_a_row_only(breaker):
    for _ in range(5):
        assert [attempt(breaker, True), attempt(breaker, True), attempt(breaker)] == ["failed", "failed", "done"]
    assert [attempt(breaker, True) for _ in range(4)] == ["failed"] * 3 + ["refused"]
    assert breaker.state == "open" and not breaker.willing


def test_breaker_backs_off_and_probes_with_one_operation(breaker, clock):
    for _ in range(3):
        attempt(breaker, True)
    for pause in (2.0, 4.0, 5.0, 5.0):
        clock.now += pause - 0.01
        assert attempt(breaker) == "refused" and not breaker.willing
        clock.now += 0.02
        assert breaker.willing and attempt(breaker, True) == "failed"
    clock.now += 6.0
    probe = breaker.permit()
    assert probe.probe and breaker.state == "half_open" and attempt(breaker) == "refused"
    breaker.give_back(probe)
    assert breaker.state == "open" and attempt(breaker) == "done" and breaker.state == "closed"
    for _ in range(3):
        attempt(breaker, True)
    clock.now += 2.01  # healthy again: the back-off starts small
    assert attempt(breaker) == "done"


def test_breaker_counts_slow_as_failed_and_ignores_stragglers(breaker, clock):
    early = breaker.permit()
    for _ in range(3):
        with breaker.attempt(breaker.permit()):
            clock.now += 1.5
    assert breaker.state == "open"
    with breaker.attempt(early):
        pass
    assert breaker.state == "open", "only the probe closes it"


def test_breaker_sees_a_stuck_operation_and_does_not_probe_meanwhile(breaker, clock):
    permit = breaker.permit()
    with breaker.attempt(permit):
        clock.now += 1.5
        assert attempt(breaker) == "refused" and breaker.state == "open"
        clock.now += 100
        assert attempt(breaker) == "refused"
    assert attempt(breaker) == "done" and breaker.state == "closed"

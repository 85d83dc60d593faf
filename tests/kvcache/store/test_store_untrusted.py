"""Directories and servers that others write to: whatever lies there, opening ends, and the worst is a miss."""

import os
import random
import socket
import struct
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_faults import content, key_of

from swa_attn.kvcache.store import RemoteOptions, SlabOptions, SlabStore
from swa_attn.kvcache.store import record as record_module
from swa_attn.kvcache.store.buffers import ALIGNMENT, Bytes
from swa_attn.kvcache.store.file_io import FileIO
from swa_attn.kvcache.store.record import HEADER_BYTES, Header, Space, checksum
from swa_attn.kvcache.store.remote import RemoteStore
from swa_attn.kvcache.store.segment import Format

pytest.importorskip("xxhash", reason="xxhash is not installed: pip install 'swa-attn[disk]'")

SLOT = 8192
STRIDE = ALIGNMENT + SLOT
SEGMENT = ALIGNMENT + 4 * STRIDE
OPTIONS = SlabOptions(2 * SEGMENT, SEGMENT, (SLOT,), workers=2, direct=False)
KEY, OTHER_KEY = b"a key of sixteen", b"another key, of more bytes"
SIGNED = replace(OPTIONS, mac_key=KEY)


def within(seconds, work):
    """What `work` gives, or a failure when it has not ended by then."""
    result = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, f"not done after {seconds} s"
    return result[0]


def open_store(path, options=OPTIONS, namespace=b"mine", **rest) -> SlabStore:
    return within(10, lambda: SlabStore(path, options, namespace=namespace, **rest))


def put(store, i: int, nbytes: int = SLOT) -> bool:
    return store.put(key_of(i), [content(key_of(i), nbytes)]).result(10)


def get(store, i: int, nbytes: int = SLOT) -> bool:
    """Whether it hit; a hit is right."""
    into = np.full(nbytes, 0xEE, np.uint8)
    hit = store.get(key_of(i), [into]).result(10)
    assert not hit or np.array_equal(into, content(key_of(i), nbytes))
    return hit


def works(store, capacity=2 * SEGMENT) -> None:
    """Room of `capacity`, all of which can be used."""
    assert store.stats().capacity_bytes == capacity
    slots = capacity // SEGMENT * 4
    assert all(put(store, 1000 + i) for i in range(slots)) and all(get(store, 1000 + i) for i in range(slots))
    assert not store.stats().refused and "internal" not in store.stats().misses
    engine = store._engine
    with engine._lock:
        engine._index.check(engine._directory.segments)


def segment_path(path, number=0) -> Path:
    return path / f"segment-{number:06d}.slab"


def a_segment(path, number=0, *, size=SEGMENT, **changed) -> Path:
    """A file with a superblock that is valid in itself."""
    file = segment_path(path, number)
    with file.open("wb") as f:
        f.write(Format(**{"slot_payload": SLOT, "nbytes": SEGMENT, "identity": bytes(16), **changed}).pack())
        f.truncate(size)
    file.chmod(0o600)
    return file


def filled(path, options=OPTIONS, count=4) -> None:
    with open_store(path, options) as store:
        assert all(put(store, i) for i in range(count))


def cut_segments(path) -> list[tuple[Path, Format]]:
    files = [(file, Format.unpack(file.read_bytes()[:ALIGNMENT])) for file in sorted(path.glob("*.slab"))]
    return [(file, format) for file, format in files if format is not None]


def rewrite(path, change, mac_key=b"") -> int:
    """Puts what `change(header, payload)` returns in the place of every record; how many there were."""
    count = 0
    for file, format in cut_segments(path):
        with file.open("r+b") as f:
            for slot in range(format.num_slots):
                f.seek(format.offset(slot))
                data = f.read(STRIDE)
                if (header := Header.unpack(data)) is not None:
                    new, payload = change(header, data[ALIGNMENT:])
                    f.seek(format.offset(slot))
                    f.write(new.pack(mac_key).ljust(ALIGNMENT, b"\0") + payload)
                    count += 1
    return count


# Numbers on the disk


@pytest.mark.parametrize("sequence", [2**64 - 1, 2**64 - 2, 2**63])
@pytest.mark.parametrize("namespace", [b"mine", b"somebody else"])
def test_the_greatest_sequence_number_stops_nobody(tmp_path, sequence, namespace):
    filled(tmp_path, count=1)
    ((file, format),) = cut_segments(tmp_path)
    payload, last = content(key_of(50), SLOT), format.num_slots - 1
    header = Header(Space.of(namespace, b""), key_of(50), SLOT, checksum([payload]), sequence, format.identity, last)
    with file.open("r+b") as f:
        f.seek(format.offset(last))
        f.write(header.pack().ljust(ALIGNMENT, b"\0") + payload.tobytes())
    with open_store(tmp_path) as store:
        assert get(store, 0) and get(store, 50) == (namespace == b"mine")
        works(store)
    with open_store(tmp_path) as store:
        works(store)


SENSELESS = [
    {"nbytes": 2**62},
    {"nbytes": 2**64 - 1},
    {"nbytes": 2**64 - ALIGNMENT},
    {"nbytes": 0},
    {"nbytes": ALIGNMENT},
    {"nbytes": SEGMENT + 1},
    {"nbytes": 2 * SEGMENT},  # the file is not that large, and this store makes smaller ones
    {"nbytes": 3 * SEGMENT, "size": 3 * SEGMENT},  # larger than all that the store may have
    {"nbytes": 1 << 40, "size": 1 << 40},  # a hole
    {"slot_payload": 0},
    {"slot_payload": 1},
    {"slot_payload": SLOT - 1},
    {"slot_payload": SLOT + 1},
    {"slot_payload": SEGMENT},
    {"slot_payload": 2**64 - 1},
    {"slot_payload": 2**64 - ALIGNMENT},
]


@pytest.mark.parametrize("changed", SENSELESS, ids=str)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_superblock_with_senseless_numbers_is_left_alone(tmp_path, changed, read_only):
    file = a_segment(tmp_path, **changed)
    before = file.stat().st_size, file.stat().st_mtime_ns
    tracemalloc.start()
    try:
        with open_store(tmp_path, replace(OPTIONS, read_only=read_only)) as store:
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
            assert store.stats().left_alone == {"bounds": 1} and not get(store, 0)
            if not read_only:
                # It may once have been a segment of this store, and takes the room of one.
                works(store, SEGMENT if file.stat().st_size >= SEGMENT else 2 * SEGMENT)
    finally:
        tracemalloc.stop()
    assert (file.stat().st_size, file.stat().st_mtime_ns) == before


def test_larger_segments_are_taken_over_only_where_there_is_room(tmp_path):
    large = replace(OPTIONS, segment_bytes=ALIGNMENT + 8 * STRIDE, capacity_bytes=2 * (ALIGNMENT + 8 * STRIDE))
    filled(tmp_path, large, count=16)
    with open_store(tmp_path, replace(OPTIONS, capacity_bytes=3 * SEGMENT)) as store:
        assert store.stats().capacity_bytes <= 3 * SEGMENT and not store.stats().left_alone
        assert all(get(store, i) for i in range(16)), "the other is there to read"


@pytest.mark.parametrize(
    "changed",
    [{"key": b""}, {"key": b"short"}, {"length": 0}, {"length": SLOT + 1}, {"length": 2**64 - 1}, {"slot": 2**32 - 1}],
    ids=str,
)
def test_a_header_with_senseless_numbers_is_no_record(tmp_path, changed):
    filled(tmp_path)
    assert rewrite(tmp_path, lambda header, payload: (replace(header, **changed), payload)) == 4
    with open_store(tmp_path) as store:
        assert store.stats().recovered_records == 0 and not any(get(store, i) for i in range(4))
        works(store)


FUZZED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ANY_64 = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([0, 1, SLOT, SEGMENT, 2**31, 2**32, 2**62, 2**63, 2**64 - 1])
)


@FUZZED
@given(
    slot_payload=ANY_64, nbytes=ANY_64, identity=st.binary(min_size=16, max_size=16), size=st.integers(0, 2 * SEGMENT)
)
def test_any_superblock_opens(tmp_path, slot_payload, nbytes, identity, size):
    for file in tmp_path.glob("*.slab"):
        file.unlink()
    a_segment(tmp_path, size=size, slot_payload=slot_payload, nbytes=nbytes, identity=identity)
    with open_store(tmp_path) as store:
        assert store.stats().left_alone.keys() <= {"bounds", "foreign"}
        assert store.stats().capacity_bytes >= SEGMENT and put(store, 0) and get(store, 0)


@FUZZED
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "sequence": ANY_64,
            "length": ANY_64,
            "slot": st.integers(0, 2**32 - 1),
            "segment": st.binary(min_size=16, max_size=16),
            "key": st.binary(max_size=32),
            "checksum": st.binary(min_size=16, max_size=16),
        },
    )
)
def test_any_header_is_right_or_a_miss(tmp_path, fields):
    for file in tmp_path.glob("*.slab"):
        file.unlink()
    filled(tmp_path)
    assert rewrite(tmp_path, lambda header, payload: (replace(header, **fields), payload)) == 4
    with open_store(tmp_path) as store:
        for i in range(4):
            get(store, i)  # compares
        works(store)


def spoil(file: Path, rng: random.Random) -> None:
    """A flipped bit or random bytes in the superblock or in one header."""
    position = rng.choice([0, ALIGNMENT + rng.randrange(4) * STRIDE]) + rng.randrange(HEADER_BYTES)
    with file.open("r+b") as f:
        f.seek(position)
        byte = f.read(1)[0]
        f.seek(position)
        f.write(rng.choice([bytes([byte ^ 1 << rng.randrange(8)]), rng.randbytes(8), rng.randbytes(300)]))


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_and_flipped_bits_anywhere(tmp_path, seed):
    rng = random.Random(seed)
    for round_ in range(12):
        path = tmp_path / str(round_)
        filled(path, count=8)
        for file in path.glob("*.slab"):
            for _ in range(4):
                spoil(file, rng)
        with open_store(path) as store:
            for i in range(8):
                get(store, i)  # compares
            assert store.stats().misses.keys() <= {"absent", "corrupt", "foreign"}
            assert not store.stats().left_alone.keys() - {"foreign"}
            works(store, store.stats().capacity_bytes)


# Files of a segment's name


def sock(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))


NOT_FILES = {
    "directory": lambda path: path.mkdir(),
    "fifo": lambda path: os.mkfifo(path),
    "socket": sock,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", NOT_FILES)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_no_file_is_left_alone_and_waited_for_by_nobody(tmp_path, monkeypatch, kind, read_only):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    NOT_FILES[kind](Path(segment_path(Path("."))))
    before = os.lstat(segment_path(tmp_path))
    with open_store(tmp_path, replace(OPTIONS, read_only=read_only)) as store:
        assert store.stats().left_alone == {"not_a_file": 1}
        if not read_only:
            works(store)
            within(10, store.refresh)
            assert store.stats().left_alone == {"not_a_file": 1}, "as of the last look"
    assert os.lstat(segment_path(tmp_path)) == before


def test_links_are_not_followed_even_to_segments(tmp_path):
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    filled(elsewhere, count=8)
    (file, _), (second, _) = cut_segments(elsewhere)
    before = file.read_bytes(), second.read_bytes()
    here.mkdir()
    segment_path(here, 0).symlink_to(file)
    os.link(second, segment_path(here, 1))
    with open_store(here) as store:
        assert store.stats().left_alone == {"not_a_file": 1, "links": 1}
        assert not any(get(store, i) for i in range(8))
        works(store, SEGMENT)
    assert (file.read_bytes(), second.read_bytes()) == before


@pytest.mark.parametrize("data", [b"x", b"precious " * 5000, bytes(20) + b"x", b"SWAKVSE", b"SWAKVREC" + bytes(5000)])
def test_somebody_elses_file_is_not_overwritten(tmp_path, data, caplog):
    segment_path(tmp_path).write_bytes(data)
    with open_store(tmp_path) as store:
        files = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            within(10, store.refresh)
        assert store.stats().left_alone == {"foreign": 1} and len(os.listdir("/proc/self/fd")) == files
        assert caplog.text.count("segment-000000.slab: left alone: foreign") == 1
        works(store)
    assert segment_path(tmp_path).read_bytes() == data


def test_a_file_that_becomes_a_fifo_while_it_is_opened(tmp_path):
    """Between the look at the path and the opening."""
    filled(tmp_path)
    (file, _), status = cut_segments(tmp_path)[0], os.lstat(segment_path(tmp_path))
    file.unlink()
    os.mkfifo(file)

    class Late(FileIO):
        def status_at(self, path):
            return status if path == file.resolve() else super().status_at(path)

    for read_only in (False, True):
        with open_store(tmp_path, replace(OPTIONS, read_only=read_only), io=Late()) as store:
            assert store.stats().left_alone.keys() == {"not_a_file"}


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_files_that_others_may_write_to_need_a_key(tmp_path, mode):
    filled(tmp_path, SIGNED)
    for file in tmp_path.glob("*.slab"):
        file.chmod(mode)
    with open_store(tmp_path) as store:
        assert store.stats().left_alone == {"untrusted": 2} and not get(store, 0)
        works(store)
    with open_store(tmp_path, SIGNED) as store:
        assert not store.stats().left_alone and all(get(store, i) for i in range(4))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_of_another_user_need_a_key(tmp_path):
    filled(tmp_path, SIGNED)
    for file in tmp_path.glob("*.slab"):
        os.chown(file, 12345, 12345)
    with open_store(tmp_path) as store:
        assert store.stats().left_alone == {"untrusted": 2} and not get(store, 0)
    with open_store(tmp_path, SIGNED) as store:
        assert not store.stats().left_alone and all(get(store, i) for i in range(4))


def test_files_and_directory_are_this_users_alone(tmp_path):
    before = os.umask(0)
    try:
        filled(tmp_path / "store")
    finally:
        os.umask(before)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "store").iterdir()} == {0o600}


def test_a_directory_behind_a_link_stays_the_one_it_was(tmp_path):
    """An operator may link to a mount. Where the link leads later does not matter."""
    real, other, link = tmp_path / "real", tmp_path / "other", tmp_path / "link"
    real.mkdir(), other.mkdir()
    link.symlink_to(real)
    with open_store(link) as store:
        link.unlink()
        link.symlink_to(other)
        within(10, store.refresh)
        works(store)
    assert len(list(real.iterdir())) == 2 and not list(other.iterdir())


# Other versions


def old_header(header: Header, payload: bytes) -> bytes:
    """As version 1 had it: layouts of 16 bytes, no codes."""
    fields = struct.pack(
        "<8sII16sQQ32s16sB7x32s16s",
        b"SWAKVREC",
        1,
        header.slot,
        header.segment,
        header.sequence,
        header.length,
        header.space.namespace,
        header.space.layout[:16],
        len(header.key),
        header.key.ljust(32, b"\0"),
        checksum([payload]),
    )
    return fields + checksum([fields])


def test_an_older_store_is_misses_and_its_room_is_used_again(tmp_path):
    filled(tmp_path, count=8)
    for file, format in cut_segments(tmp_path):
        with file.open("r+b") as f:
            for slot in range(format.num_slots):
                f.seek(format.offset(slot))
                data = f.read(STRIDE)
                old = old_header(Header.unpack(data), data[ALIGNMENT:])
                f.seek(format.offset(slot))
                f.write(old.ljust(ALIGNMENT, b"\0"))
    with open_store(tmp_path, replace(OPTIONS, read_only=True)) as store:
        assert not any(get(store, i) for i in range(8)) and store.stats().misses == {"absent": 8}
    with open_store(tmp_path) as store:
        assert store.stats().recovered_records == 0 and not store.stats().left_alone
        assert not any(store.contains(key_of(i)) for i in range(8))
        works(store)
    assert len(list(tmp_path.glob("*.slab"))) == 2


@pytest.mark.parametrize("version", [0, 1, record_module.VERSION + 1, 2**32 - 1])
def test_a_record_of_another_version_is_a_miss(tmp_path, monkeypatch, version):
    with monkeypatch.context() as patch:
        patch.setattr(record_module, "VERSION", version)
        filled(tmp_path)
    with open_store(tmp_path) as store:
        assert not any(get(store, i) for i in range(4)) and store.stats().recovered_records == 0
        works(store)


# Signatures


def test_signed_records_come_back_to_who_has_the_key(tmp_path):
    filled(tmp_path, SIGNED)
    for options in (SIGNED, replace(SIGNED, read_only=True), OPTIONS):  # without a key nobody is asked
        with open_store(tmp_path, options) as store:
            assert all(get(store, i) for i in range(4)) and store.stats().forged_headers == 0


@pytest.mark.parametrize("written, read", [(OPTIONS, SIGNED), (SIGNED, replace(SIGNED, mac_key=OTHER_KEY))])
def test_records_without_the_right_signature_are_misses(tmp_path, written, read):
    filled(tmp_path, written)
    with open_store(tmp_path, replace(read, read_only=True)) as store:
        assert not any(get(store, i) for i in range(4))
        stats = store.stats()
        assert stats.forged_headers == 4 and stats.recovered_records == 0 and stats.misses == {"absent": 4}
    with open_store(tmp_path, read) as store:
        works(store)


def forged(change):
    """A change of a record whose checksums are made right afterwards."""

    def changed(header, payload):
        header, payload = change(header, payload)
        return replace(header, checksum=checksum([payload])), payload

    return changed


FORGERIES = {
    "payload": lambda header, payload: (header, b"?" + payload[1:]),
    "key": lambda header, payload: (replace(header, key=key_of(77)), payload),
    "namespace": lambda header, payload: (replace(header, space=Space.of(b"other", b"")), payload),
    "length": lambda header, payload: (replace(header, length=SLOT - 1), payload),
    "sequence": lambda header, payload: (replace(header, sequence=header.sequence + 1), payload),
    "mac": lambda header, payload: (replace(header, mac=bytes(32)), payload),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_what_is_forged_under_a_running_store_is_a_miss_of_its_own_kind(tmp_path, what):
    with open_store(tmp_path, SIGNED) as store:
        assert put(store, 0) and get(store, 0)
        assert rewrite(tmp_path, forged(FORGERIES[what])) == 1
        assert not get(store, 0) and store.stats().misses == {"forged": 1}
        assert store.stats().retired_slots == 0 and not store.contains(key_of(0))
        works(store)
    with open_store(tmp_path, OPTIONS) as store:
        assert store.stats().recovered_records == 8


def test_a_forged_payload_under_a_header_that_is_signed(tmp_path):
    """The header's own signature and the checksums are right, and the payload's signature is not."""
    with open_store(tmp_path, SIGNED) as store:
        assert put(store, 0)
        assert rewrite(tmp_path, lambda header, payload: (replace(header, mac=bytes(32)), payload), KEY) == 1
        assert not get(store, 0) and store.stats().misses == {"forged": 1}


def test_a_signed_record_cannot_be_moved_to_another_place(tmp_path):
    with open_store(tmp_path, SIGNED) as store:
        assert put(store, 0) and put(store, 1)
        ((file, format),) = cut_segments(tmp_path)
        data = bytearray(file.read_bytes())
        first, second = format.offset(0), format.offset(1)
        data[second : second + STRIDE] = data[first : first + STRIDE]
        file.write_bytes(data)
        assert get(store, 0) and not get(store, 1) and store.stats().misses == {"foreign": 1}


def test_damage_to_a_signed_record_is_damage(tmp_path):
    with open_store(tmp_path, SIGNED) as store:
        for i, position in enumerate((30, HEADER_BYTES - 30, ALIGNMENT + 5)):
            assert put(store, i)
            (file, format), *_ = cut_segments(tmp_path)
            with file.open("r+b") as f:
                f.seek(format.offset(i) + position)
                byte = f.read(1)[0]
                f.seek(format.offset(i) + position)
                f.write(bytes([byte ^ 1]))
            assert not get(store, i)
        assert store.stats().misses == {"corrupt": 3}


@pytest.mark.parametrize("options", [lambda key: replace(OPTIONS, mac_key=key), lambda key: RemoteOptions(mac_key=key)])
def test_a_key_is_checked_and_never_shown(options):
    for key, error in (
        (b"", ValueError),
        (b"15 bytes, oh no", ValueError),
        (bytes(65), ValueError),
        ("k" * 16, TypeError),
    ):
        with pytest.raises(error, match="mac_key: expected") as raised:
            options(key)
        assert not key or str(key) not in str(raised.value)
    assert "sixteen" not in repr(options(KEY))


class Shared(RemoteStore):
    """A server in this process: a dictionary that anybody can write to."""

    def __init__(self, values: dict[str, bytes], mac_key: bytes | None) -> None:
        self.values = values
        super().__init__("shared", namespace=b"m", layout=b"", options=RemoteOptions(workers=1, mac_key=mac_key))

    def _send(self, name: str, header: bytes, payload: list[Bytes], until: float) -> None:
        self.values[name] = b"".join([header, *payload])

    def _fetch(self, name: str, nbytes: int, until: float) -> bytes | str:
        value = self.values.get(name)
        return "absent" if value is None else value if len(value) == nbytes else "size"

    def _exists(self, name: str, until: float) -> bool:
        return name in self.values

    def _touch(self, name: str, until: float) -> bool:
        return name in self.values

    def _remove(self, name: str, until: float) -> None:
        self.values.pop(name, None)

    def _disconnect(self) -> None: ...


@pytest.mark.parametrize("writer", [None, OTHER_KEY])
def test_values_of_a_server_without_the_right_signature_are_misses(writer):
    values: dict[str, bytes] = {}
    with Shared(values, writer) as theirs, Shared(values, KEY) as ours:
        assert put(theirs, 0) and get(theirs, 0)
        assert not get(ours, 0) and ours.stats().misses == {"forged": 1}
        assert put(ours, 0) and get(ours, 0), "and can be put again"
        ((name, value),) = values.items()
        header, payload = Header.unpack(value), b"?" + value[HEADER_BYTES + 1 :]
        values[name] = replace(header, checksum=checksum([payload])).pack() + payload
        assert not get(ours, 0) and ours.stats().misses == {"forged": 2}
        values[name] = value[:-1] + bytes([value[-1] ^ 1])
        assert not get(ours, 0) and ours.stats().misses == {"forged": 2, "corrupt": 1}


def test_the_names_of_values_say_the_version():
    values: dict[str, bytes] = {}
    with Shared(values, None) as store:
        assert put(store, 0)
    assert [name.split("-")[0] for name in values] == [f"swa{record_module.VERSION}"]


@pytest.mark.parametrize("before, after", [(8192, 65536), (65536, 8192)])
def test_a_store_with_other_size_classes_uses_the_same_files(tmp_path, before, after):
    for size in (before, after):
        settings = SlabOptions(2 << 20, segment_bytes=1 << 20, size_classes=(size,), workers=2, direct=False)
        with SlabStore(tmp_path, settings, namespace=b"n") as store:
            assert all(store.put(bytes([i]) * 16, [b"x" * size]).result(10) for i in range(5))
            assert store.stats().left_alone == {}

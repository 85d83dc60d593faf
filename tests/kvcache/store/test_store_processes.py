"""Processes that share a directory, and processes that die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("xxhash", reason="xxhash is not installed: pip install 'swa-attn[disk]'")

from store_faults import key_of
from store_process import OPTIONS, get, put

from swa_attn.kvcache.store import SlabOptions, SlabStore

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


class Other:
    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(HERE / "store_process.py"), *map(str, arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT)

    def ready(self) -> "Other":
        assert self.answer() == "ready"
        return self

    def answer(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return json.loads(line)

    def ask(self, command: str):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def others():
    started = []

    def start(*arguments):
        started.append(Other(*arguments))
        return started[-1]

    yield start
    for other in started:
        other.kill()


def open_store(path, **options) -> SlabStore:
    return SlabStore(path, SlabOptions(**OPTIONS, **options), namespace=b"shared")


def test_two_writers_share_a_directory(tmp_path, others):
    with open_store(tmp_path) as store:
        assert put(store, 0, 10) == 10
        other, stranger = others(tmp_path, "shared"), others(tmp_path, "foreign")
        other.ready(), stranger.ready()
        # Each writes to files of its own; what was there is readable by the same namespace only.
        assert other.ask("stats")["capacity"] == stranger.ask("stats")["capacity"] == 4 << 20
        assert len(list(tmp_path.glob("*.slab"))) == 12
        assert other.ask("get 0 10") == [10, 0]
        assert stranger.ask("get 0 10") == [0, 0]
        assert other.ask("put 100 10") == 10
        assert get(store, 100, 10) == (0, 0)
        store.refresh()
        assert get(store, 100, 10) == (10, 0)
        # Records that their owner overwrites are misses, not other records.
        assert other.ask("put 1000 40") == 40
        right, wrong = get(store, 100, 10)
        assert wrong == 0 and right < 10
        reader = others(tmp_path, "shared", "read_only").ready()
        assert reader.ask("get 0 10") == [10, 0]
        assert reader.ask("put 5000 1") == 0 and reader.ask("stats")["refused"] == {"read_only": 1}
        other.kill()
    stranger.kill()
    # After their end, someone with room takes their files over.
    with SlabStore(tmp_path, SlabOptions(12 << 20, 1 << 20), namespace=b"shared") as store:
        assert store.stats().capacity_bytes == 12 << 20 and len(list(tmp_path.glob("*.slab"))) == 12
        assert get(store, 0, 10) == (10, 0) and get(store, 1030, 10) == (10, 0)


def test_reading_while_another_process_overwrites(tmp_path, others):
    other = others(tmp_path, "shared").ready()
    assert other.ask("put 0 30") == 30
    with open_store(tmp_path, read_only=True) as store:
        assert other.ask("churn") == "churning"
        end, totals = time.monotonic() + 20.0, [0, 0]
        i = 1_000_000
        while totals[0] < 100 and time.monotonic() < end:
            store.refresh()
            newest = max((int(i) for i in range(i, i + 4000, 8) if store.contains(key_of(i))), default=i)
            i = max(i, newest - 16)
            for sum_index, number in enumerate(get(store, i, 24)):
                totals[sum_index] += number
        assert totals[1] == 0 and totals[0] > 0
        assert store.stats().misses.get("internal", 0) == 0


def test_an_interrupt_ends_a_working_process_at_once_and_cleanly(tmp_path, others):
    other = others(tmp_path, "shared").ready()
    assert other.ask("put 0 5") == 5 and other.ask("churn") == "churning"
    time.sleep(0.3)
    other.process.send_signal(signal.SIGINT)
    _, err = other.process.communicate(timeout=35)
    assert "KeyboardInterrupt" in err and other.process.returncode != 0
    with open_store(tmp_path) as store:
        engine = store._engine
        for entry in list(engine._index._entries.values()):
            assert store.get(entry.key, [bytearray(entry.length)]).result(10)
        assert store.stats().misses == {}


def test_a_fork_must_open_the_store_again(tmp_path):
    with open_store(tmp_path) as store:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                store.put(bytes(16), [b"x"])
            except RuntimeError as error:
                os.write(write_end, str(error).encode())
            os._exit(0)
        os.close(write_end)
        os.waitpid(child, 0)
        assert b"open it again" in os.read(read_end, 1000)
        os.close(read_end)


def test_fifty_kills():
    """The whole of crash.py; `make store-crash` does a thousand."""
    command = [sys.executable, str(HERE / "crash.py"), "--kills", "50"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)
    assert summary["wrong"] == summary["lost"] == summary["leaked_files"] == 0
    assert summary["right"] > 20 and summary["detected"] > 0
    assert not [t for t in threading.enumerate() if t.name.startswith("swa-store")]

"""What a mover does with transfers that end late, and with a thread that cannot be had."""

import threading
import time
from concurrent.futures import Future

import pytest
import torch

from swa_attn.kvcache import GroupSpec, KVCache, LowerTiers
from swa_attn.kvcache.store import SlabOptions, SlabStore

GROUPS = (GroupSpec("full", (0,), 1, 4, 4),)


def open_cache(store=None, **options) -> KVCache:
    lower = LowerTiers({"full": 30}, **({} if store is None else {"store": store, "disk_bytes": 1 << 20}))
    return KVCache(
        GROUPS, 4, {"full": 20}, torch.float32, "cpu", options.pop("fingerprint", "m"), lower=lower, **options
    )


def run(cache: KVCache, first: int = 0) -> int:
    """A request of its own for every `first`; returns how much of it was in some tier."""
    tokens = [first + i for i in range(40)]
    sequence = cache.begin(cache.key(tokens))
    while sequence.is_loading:
        cache.poll(timeout=10)
    found = sequence.num_computed
    assert cache.extend(sequence, len(tokens) - found)
    cache.commit(sequence, tokens[found:])
    cache.end(sequence)
    return found


def settle(cache: KVCache) -> None:
    cache.poll(timeout=0.0)
    while cache.num_pending:
        cache.poll(timeout=10)


def copying_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "swa_attn copies"]


class SlowToTell(SlabStore):
    """Somebody else's callback comes first: for a while a put is over for whoever waits for it, and not for the mover."""

    def put(self, key, buffers):
        future = super().put(key, buffers)
        future.add_done_callback(lambda _: time.sleep(0.02))
        return future


@pytest.fixture
def store(tmp_path):
    layout, sizes = KVCache.store_layout(GROUPS, 4, torch.float32)
    options = SlabOptions(8 << 20, segment_bytes=1 << 20, size_classes=sizes, direct=False, workers=2)
    with SlowToTell(tmp_path, options, namespace=b"late", layout=layout) as opened:
        yield opened


@pytest.mark.parametrize("forget", ["clear", "reset"])
def test_no_transfer_of_before_ends_in_the_cache_that_was_made_anew(store, forget):
    with open_cache(store) as cache:
        for first in (0, 100, 200):
            run(cache, first)
            give_up = time.monotonic() + 10
            while not cache.mover._in_store:  # until the writes to the store have begun
                assert time.monotonic() < give_up
                cache.poll(timeout=0.01)
            getattr(cache, forget)()
            assert cache.num_pending == 0 and not cache.mover._in_store and not cache.mover._ended
            settle(cache)
            assert all(pool.num_used == 0 for shelf in cache.shelves[:2] for pool in shelf.pools)
        assert run(cache, 300) == 0
        settle(cache)
        assert cache.num_pending == 0 and not cache.is_torn


def test_a_transfer_that_fails_as_it_ends_does_not_keep_the_mover_from_starting_anew(store, monkeypatch):
    def failing(*_: object) -> None:
        raise MemoryError

    with open_cache(store) as cache:
        monkeypatch.setattr(cache.mover, "_end", failing)
        future: Future[bool] = Future()
        cache.mover._when_all(None, [future])
        future.set_result(True)
        monkeypatch.undo()
        cache.reset()
        assert run(cache) == 0


def test_a_thread_that_cannot_be_had_is_asked_for_again(monkeypatch):
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with open_cache() as cache:
        run(cache)
        monkeypatch.setattr(threading.Thread, "start", none_left)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                cache.reset()
            assert cache.is_torn and not copying_threads()
        cache.close()
        monkeypatch.setattr(threading.Thread, "start", start)
        cache.reset()
        assert run(cache) == 0
        settle(cache)
        assert len(copying_threads()) == 1
    assert not copying_threads()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"hash_key": b"x"}, ValueError),
        ({"hash_key": "x" * 16}, TypeError),
        ({"fingerprint": 3}, TypeError),
        ({"policy": 7}, AttributeError),  # found last
    ],
)
def test_a_cache_that_cannot_be_made_leaves_no_thread(wrong, error):
    with pytest.raises(error):
        open_cache(**wrong)
    assert not copying_threads()


def test_another_fingerprint_is_checked_like_the_first(store):
    with open_cache(store) as cache:
        for wrong, error, message in (
            ("", ValueError, "must name the model above a store"),
            (None, TypeError, "must be a str, got NoneType"),
            (b"m", TypeError, "must be a str, got bytes"),
        ):
            with pytest.raises(error, match=rf"^KVCache\.set_fingerprint: fingerprint {message}"):
                cache.set_fingerprint(wrong)
        assert cache.fingerprint == "m" and not cache.is_torn
    with open_cache() as cache:
        cache.set_fingerprint("")
        assert cache.fingerprint == ""

import pytest

from swa_attn.kvcache import KVCache, PagePool


@pytest.fixture
def poisoned_pools(monkeypatch):
    """Every device page holds NaN when it is handed out and again once nobody holds it."""
    memory = {}
    init, allocate, release = KVCache.__init__, PagePool.allocate, PagePool.release

    def init_and_remember(cache, *args, **options):
        init(cache, *args, **options)
        memory.update({cache.pools[name]: pages for name, pages in cache.memory.items()})

    def poison(pool, pages):
        if pool in memory:
            memory[pool].k[:, pages] = float("nan")
            memory[pool].v[:, pages] = float("nan")

    def allocate_poisoned(pool, count):
        pages = allocate(pool, count)
        poison(pool, pages)
        return pages

    def release_poisoned(pool, pages):
        release(pool, pages)
        poison(pool, pages)

    monkeypatch.setattr(KVCache, "__init__", init_and_remember)
    monkeypatch.setattr(PagePool, "allocate", allocate_poisoned)
    monkeypatch.setattr(PagePool, "release", release_poisoned)

import pytest

from swa_attn.kvcache import PagePool


@pytest.fixture
def poisoned_pools(monkeypatch):
    """Every page holds NaN when it is handed out and again once nobody holds it."""

    def poison(pool, pages):
        pool.k[:, pages] = float("nan")
        pool.v[:, pages] = float("nan")

    allocate, free_if_unheld = PagePool.allocate, PagePool._free_if_unheld

    def allocate_poisoned(pool, count):
        pages = allocate(pool, count)
        poison(pool, pages)
        return pages

    def free_poisoned(pool, page):
        free_if_unheld(pool, page)
        if not pool.is_in_use(page) and not pool.is_kept(page):
            poison(pool, [page])

    monkeypatch.setattr(PagePool, "allocate", allocate_poisoned)
    monkeypatch.setattr(PagePool, "_free_if_unheld", free_poisoned)

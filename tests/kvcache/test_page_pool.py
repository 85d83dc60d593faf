import pytest
import torch

from swa_attn.kvcache import CacheFull, GroupSpec, PageAccountingError, PagePool

SPEC = GroupSpec("swa", (1, 2, 4), num_kv_heads=2, head_dim=24, v_head_dim=16, window=8)


def make_pool(num_pages: int = 4) -> PagePool:
    return PagePool(SPEC, 4, num_pages, torch.bfloat16, "cpu")


def test_tensors_are_per_layer_and_layer_is_a_view():
    pool = make_pool()
    assert pool.k.shape == (3, 4, 4, 2, 24) and pool.v.shape == (3, 4, 4, 2, 16)
    k, v = pool.layer(4)
    k.fill_(1)
    v.fill_(2)
    assert (pool.k[2] == 1).all() and (pool.v[2] == 2).all()
    assert pool.bytes_per_page == (pool.k.nbytes + pool.v.nbytes) // 4


def test_a_page_moves_between_free_in_use_and_cached():
    pool = make_pool()
    a, b = pool.allocate(2)
    assert (pool.num_free, pool.num_in_use, pool.num_cached) == (2, 2, 0)
    pool.keep([a])
    pool.release([a, b])
    assert (pool.num_free, pool.num_in_use, pool.num_cached) == (3, 0, 1)
    pool.retain([a, a])
    assert (pool.num_free, pool.num_in_use, pool.num_cached) == (3, 1, 0)
    pool.release([a])
    pool.drop([a])
    assert (pool.num_free, pool.num_in_use, pool.num_cached) == (3, 1, 0)
    pool.release([a])
    assert (pool.num_free, pool.num_in_use, pool.num_cached) == (4, 0, 0)
    assert pool.peak_in_use == 2
    assert sorted(pool.allocate(4)) == [0, 1, 2, 3]


def test_too_many_pages_raise_and_take_none():
    pool = make_pool()
    pool.allocate(1)
    with pytest.raises(CacheFull, match=r"pool 'swa': 4 pages asked for, 3 are free"):
        pool.allocate(4)
    assert pool.num_free == 3


@pytest.mark.parametrize("verb", ["release", "drop", "retain", "keep"])
def test_a_free_page_cannot_be_given_back_or_shared(verb):
    pool = make_pool()
    (page,) = pool.allocate(1)
    pool.release([page])
    with pytest.raises(PageAccountingError, match=f"page {page}"):
        getattr(pool, verb)([page])
    assert sorted(pool.allocate(4)) == [0, 1, 2, 3]


def test_a_sequence_cannot_release_what_only_the_cache_keeps():
    pool = make_pool()
    (page,) = pool.allocate(1)
    pool.keep([page])
    pool.release([page])
    with pytest.raises(PageAccountingError, match="released, but no sequence uses it"):
        pool.release([page])
    pool.drop([page])
    with pytest.raises(PageAccountingError, match="dropped, but no cache entry holds it"):
        pool.drop([page])


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="page_size must be at least 1, got 0"):
        PagePool(SPEC, 0, 4, torch.float32, "cpu")
    with pytest.raises(ValueError, match="num_pages must be at least 1, got 0"):
        PagePool(SPEC, 4, 0, torch.float32, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window must be at least 1 or None, got 0"),
        ({"layers": ()}, "layers must be distinct"),
        ({"layers": (1, 1)}, "layers must be distinct"),
        ({"num_kv_heads": 0}, "num_kv_heads must be at least 1, got 0"),
        ({"v_head_dim": 0}, "v_head_dim must be at least 1, got 0"),
    ],
)
def test_group_spec_is_checked(change, message):
    fields = {"name": "g", "layers": (0,), "num_kv_heads": 1, "head_dim": 1, "v_head_dim": 1, "window": None}
    with pytest.raises(ValueError, match=message):
        GroupSpec(**{**fields, **change})


def test_group_spec_arithmetic():
    assert SPEC.bytes_per_token(torch.bfloat16) == 3 * 2 * (24 + 16) * 2
    assert [SPEC.first_visible(p) for p in (0, 7, 8, 9)] == [0, 0, 1, 2]
    full = GroupSpec("full", (0,), 4, 192, 128)
    assert full.first_visible(10**6) == 0
    # MiMo-V2.5 in bf16: 22.5 KiB per token in the 9 full layers, 195 KiB in the 39 windowed ones
    assert GroupSpec("full", tuple(range(9)), 4, 192, 128).bytes_per_token(torch.bfloat16) == 22.5 * 1024
    assert GroupSpec("swa", tuple(range(39)), 8, 192, 128, 128).bytes_per_token(torch.bfloat16) == 195 * 1024

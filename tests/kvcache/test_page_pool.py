import pytest
import torch

from swa_attn.kvcache import CacheFull, GroupSpec, PageAccountingError, PagePool
from swa_attn.kvcache.storage import DevicePages

SPEC = GroupSpec("swa", (1, 2, 4), num_kv_heads=2, head_dim=24, v_head_dim=16, window=8)


def test_memory_is_per_layer_and_layer_is_a_view():
    pages = DevicePages(SPEC, 4, 5, torch.bfloat16, "cpu")
    assert pages.k.shape == (3, 5, 4, 2, 24) and pages.v.shape == (3, 5, 4, 2, 16)
    k, v = pages.layer(2)
    k.fill_(1)
    v.fill_(2)
    assert (pages.k[2] == 1).all() and (pages.v[2] == 2).all()
    assert 5 * 4 * SPEC.bytes_per_token(torch.bfloat16) == pages.k.nbytes + pages.v.nbytes


@pytest.mark.parametrize("num_pages", [4, None])
def test_every_page_is_handed_out_once(num_pages):
    pool = PagePool(SPEC, 100, num_pages)
    first = pool.allocate(3)
    pool.release(first[:2])
    assert (pool.num_used, pool.is_free(first[0]), pool.is_free(first[2])) == (1, True, False)
    again = pool.allocate(3)
    assert sorted([*again, first[2]]) == [0, 1, 2, 3]
    assert pool.is_free(4) and pool.num_used == 4


def test_too_many_pages_raise_and_take_none():
    pool = PagePool(SPEC, 100, 4)
    pool.allocate(1)
    with pytest.raises(CacheFull, match=r"pool 'swa': 4 pages were asked for, 3 are free"):
        pool.allocate(4)
    assert pool.num_free == 3


@pytest.mark.parametrize("num_pages", [4, None])
def test_a_free_page_cannot_be_given_back(num_pages):
    pool = PagePool(SPEC, 100, num_pages)
    (page,) = pool.allocate(1)
    pool.release([page])
    for wrong in (page, 3):
        with pytest.raises(PageAccountingError, match=f"pool 'swa': page {wrong} is free"):
            pool.release([wrong])
    assert len(set(pool.allocate(4))) == 4


def test_pages_in_use_are_counted_among_those_handed_out():
    pool = PagePool(SPEC, 100, 4)
    pages = pool.allocate(3)
    pool.hold(2)
    assert (pool.num_free, pool.num_in_use, pool.num_cached) == (1, 2, 1)
    pool.let_go(2)
    pool.release(pages)
    assert (pool.num_free, pool.num_in_use, pool.num_cached, pool.peak_in_use) == (4, 0, 0, 2)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="num_pages must be at least 1, got 0"):
        PagePool(SPEC, 100, 0)


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

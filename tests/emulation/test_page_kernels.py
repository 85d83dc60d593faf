"""append_kv, copy_pages and merge_states of csrc/cuda in the emulator: what tests/ops/test_pages.py, which runs them too,
cannot ask of every backend: every float8 value, schedules, alignment, and the traffic that a GPU would see."""

import itertools
import math

import pytest
import torch

import swa_attn
from swa_attn import reference
from swa_attn.testing import emulated_backend
from swa_attn.testing.cases import empty_pool

FP8 = torch.float8_e4m3fn
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
NAN = float("nan")


@pytest.fixture(autouse=True)
def emulated():
    reason = emulated_backend.unavailable()
    if reason:
        pytest.skip(reason)
    with swa_attn.use_backend("emulated"):
        yield


def bits(x):
    return x.contiguous().view(torch.uint8)


def counters():
    return emulated_backend.last_run.counters


def shifted(x, elements):
    """The same values and strides, `elements` further in memory."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    moved = torch.empty(last + 1 + elements, dtype=x.dtype).as_strided(x.shape, x.stride(), elements)
    return moved.copy_(x)


def every_float8_boundary():
    """float32: all finite float8 values, the points between neighbours, and the floats next to all of those."""
    codes = torch.arange(0x7F, dtype=torch.uint8).view(FP8).float()
    points = torch.cat([codes, (codes[1:] + codes[:-1]) / 2, torch.tensor([464.0, 480.0, 1e30, math.inf, 2.0**-10])])
    near = torch.cat(
        [points, torch.nextafter(points, torch.tensor(math.inf)), torch.nextafter(points, torch.zeros(()))]
    )
    subnormal = torch.tensor([1, 0x7FFFFF], dtype=torch.int32).view(torch.float32)
    values = torch.cat([near, subnormal, torch.tensor([NAN])])
    return torch.cat([values, -values])


def every_value(dtype):
    if dtype == torch.float32:
        generator = torch.Generator().manual_seed(0)
        anything = torch.randint(-(2**31), 2**31, (4000,), generator=generator).to(torch.int32).view(torch.float32)
        return torch.cat([every_float8_boundary(), anything])
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_value_becomes_the_float8_that_torch_makes_of_it(dtype):
    values = every_value(dtype)
    width = 256
    key = torch.zeros(-(-len(values) // width) * width, dtype=dtype)
    key[: len(values)] = values
    key = key.view(1, -1, width)
    pools = empty_pool((1, 1, key.shape[1], width), 16, "nhd", FP8, 0.0)
    swa_attn.append_kv(key, torch.zeros(1, key.shape[1], 16, dtype=dtype), *pools, torch.tensor([0]))
    expected = key[0].float().clamp(-448, 448).to(FP8)
    got = pools[0][0, 0]
    is_nan = key[0].isnan()
    assert torch.equal(bits(got)[~is_nan], bits(expected)[~is_nan])
    assert (bits(got)[is_nan] & 0x7F == 0x7F).all() and is_nan.any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_float8_is_read_exactly(dtype):
    src = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(FP8).view(1, 1, 1, 1, 256)
    dst = torch.zeros(1, 1, 1, 1, 256, dtype=dtype)
    page = torch.tensor([0])
    swa_attn.copy_pages(src, dst, page, page, src_scale=torch.ones(1, 1, 1))
    expected = src.float().to(dtype)
    is_nan = expected.isnan()
    assert is_nan.sum() == 2 and dst[is_nan].isnan().all()
    assert torch.equal(bits(dst[~is_nan]), bits(expected[~is_nan]))


def new_tokens(num_tokens, heads, head_dim, v_head_dim, dtype):
    generator = torch.Generator().manual_seed(1)
    sizes = (head_dim, v_head_dim)
    return [torch.randn(num_tokens, heads, size, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("dtype, cache_dtype", list(itertools.product(FLOATS, [*FLOATS, FP8])), ids=str)
@pytest.mark.parametrize(
    "layout, token_shift, device_shift, host_shift",
    [("padded", 0, 0, 1), ("hnd", 0, 1, 0), ("padded", 1, 0, 0), ("packed", 0, 0, 0), ("nhd", 3, 5, 7)],
)
def test_append_between_all_dtypes_at_any_alignment(dtype, cache_dtype, layout, token_shift, device_shift, host_shift):
    """head_dim 24 and v_head_dim 9 in one call: one side may be moved by wide units when the other is not."""
    heads, page_size, slots = 3, 5, torch.tensor([14, -7, 3, 22, 9, 16])
    key, value = (shifted(x, token_shift) for x in new_tokens(6, heads, 24, 9, dtype))
    scales = [torch.rand(5, heads) + 0.5 for _ in range(2)] if cache_dtype == FP8 else [None, None]
    pools = []
    for _ in range(2):
        device = empty_pool((3, page_size, heads, 24), 9, layout, cache_dtype, NAN)
        host = empty_pool((2, page_size, heads, 24), 9, "nhd" if layout != "nhd" else "hnd", cache_dtype, NAN)
        if layout != "packed":
            device = [shifted(x, device_shift) for x in device]
        pools.append((device, [shifted(x, host_shift) for x in host]))
    for op, (device, host) in zip((swa_attn.append_kv, reference.append_kv), pools, strict=True):
        op(key, value, *device, slots, k_scale=scales[0], v_scale=scales[1], k_host_cache=host[0], v_host_cache=host[1])
    for mine, theirs in zip(itertools.chain(*pools[0]), itertools.chain(*pools[1]), strict=True):
        assert torch.equal(bits(mine), bits(theirs))


@pytest.mark.parametrize("slot", [12, 2**33, 2**62])
def test_append_beyond_the_pools_writes_nothing(slot):
    key, value = new_tokens(2, 2, 16, 16, torch.float32)
    pools = empty_pool((3, 4, 2, 16), 16, "nhd", torch.float32, NAN)
    swa_attn.append_kv(key, value, *pools, torch.tensor([slot, 1]))
    assert torch.equal(pools[0].flatten(0, 1)[1], key[1])
    assert pools[0].isnan().sum() == pools[0].numel() - 32


def test_append_of_nothing_and_to_nowhere():
    key, value = new_tokens(3, 2, 16, 8, torch.bfloat16)
    pools = empty_pool((2, 4, 2, 16), 8, "nhd", torch.bfloat16, NAN)
    swa_attn.append_kv(key[:0], value[:0], *pools, torch.zeros(0, dtype=torch.int64))
    swa_attn.append_kv(key, value, *pools, torch.tensor([-1, -(2**62), -4]))
    assert pools[0].isnan().all() and pools[1].isnan().all()
    empty = [pool[:0] for pool in pools]
    swa_attn.append_kv(key[:1], value[:1], *empty, torch.tensor([5]), k_host_cache=pools[0], v_host_cache=pools[1])
    assert torch.equal(pools[0][1, 1], key[0]) and torch.equal(pools[1][1, 1], value[0])


def test_append_beyond_two_to_the_31_bytes_and_slots():
    torch.utils.deterministic.fill_uninitialized_memory = False
    num_pages = 2**31 // (64 * 2 * 64) + 4
    k_cache = torch.empty(num_pages, 64, 2, 64, dtype=FP8)
    v_cache = torch.empty(num_pages, 64, 2, 1, dtype=FP8)
    k_cache[:5], k_cache[-1], v_cache[-1] = 0.0, 0.0, 0.0
    key, value = new_tokens(1, 2, 64, 1, torch.float32)
    swa_attn.append_kv(key, value, k_cache, v_cache, torch.tensor([num_pages * 64 - 1]))
    assert torch.equal(bits(k_cache[-1, -1]), bits(key[0].to(FP8)))
    assert torch.equal(bits(v_cache[-1, -1]), bits(value[0].to(FP8)))
    assert (bits(k_cache[:5]) == 0).all() and (bits(k_cache[-1, :-1]) == 0).all()


def random_pool(shape, dtype, order=(0, 1, 2, 3, 4), seed=2):
    """`[layers, pages, page_size, heads, dim]` with its dimensions in memory in the given order."""
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn([shape[i] for i in order], generator=generator).to(dtype)
    return memory.permute([order.index(i) for i in range(5)])


ORDERS = {"layers": (0, 1, 2, 3, 4), "pages": (1, 0, 2, 3, 4), "heads": (0, 1, 3, 2, 4), "slots": (2, 0, 1, 3, 4)}


@pytest.mark.parametrize("src_order, dst_order", list(itertools.product(ORDERS, ORDERS)))
@pytest.mark.parametrize(
    "dtype, dim", [(torch.bfloat16, 24), (torch.float32, 3), (torch.float16, 1), (FP8, 5)], ids=str
)
def test_copy_between_all_layouts(src_order, dst_order, dtype, dim):
    """Rows that follow each other in both pools become one: heads, slots, both in either order, or neither."""
    src = random_pool((2, 4, 3, 2, dim), dtype, ORDERS[src_order])
    dst = torch.full_like(random_pool((2, 3, 3, 2, dim), torch.float32, ORDERS[dst_order]), NAN).to(dtype)
    assert dst.stride()[:2] == random_pool((2, 3, 3, 2, dim), dtype, ORDERS[dst_order]).stride()[:2]
    expected = dst.clone(memory_format=torch.preserve_format)
    pages = torch.tensor([3, 1, -1, 0]), torch.tensor([0, 2, 1, -5])
    swa_attn.copy_pages(src, dst, *pages)
    reference.copy_pages(src, expected, *pages)
    assert torch.equal(bits(dst), bits(expected))


@pytest.mark.parametrize("src_shift, dst_shift", [(0, 0), (1, 0), (0, 1), (3, 2), (8, 8)])
@pytest.mark.parametrize("dtype", [*FLOATS, FP8], ids=str)
def test_copy_at_any_alignment(dtype, src_shift, dst_shift):
    src = shifted(random_pool((2, 3, 2, 2, 16), dtype), src_shift)
    dst = shifted(torch.zeros(2, 3, 2, 2, 16, dtype=dtype), dst_shift)
    swa_attn.copy_pages(src, dst, torch.tensor([2, 0]), torch.tensor([1, 2]))
    assert torch.equal(bits(dst[:, [1, 2]]), bits(src[:, [2, 0]])) and (dst[:, 0].float() == 0).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim, shift, down_shift", [(32, 0, 0), (32, 1, 0), (32, 0, 1), (5, 0, 0)])
@pytest.mark.parametrize("order", ["layers", "heads", "slots"])
def test_float8_both_ways_at_any_alignment(dtype, dim, shift, down_shift, order):
    src = random_pool((2, 4, 3, 2, dim), dtype, ORDERS[order])
    src[0, 1] = 0
    src[1, 3, :, 1] *= 1000
    src = shifted(src, shift)
    down = [shifted(torch.full((2, 3, 3, 2, dim), NAN).to(FP8), down_shift) for _ in range(2)]
    scale = [torch.full((3, 2, 2), NAN).transpose(0, 1) for _ in range(2)]
    there, here = torch.tensor([3, 1, -1]), torch.tensor([0, 2, 1])
    swa_attn.copy_pages(src, down[0], there, here, dst_scale=scale[0])
    reference.copy_pages(src, down[1], there, here, dst_scale=scale[1])
    assert torch.equal(bits(scale[0]), bits(scale[1])) and torch.equal(bits(down[0]), bits(down[1]))
    back = [shifted(torch.full_like(src, NAN), shift) for _ in range(2)]
    swa_attn.copy_pages(down[0], back[0], here, there, src_scale=scale[0])
    reference.copy_pages(down[1], back[1], here, there, src_scale=scale[1])
    assert torch.equal(bits(back[0]), bits(back[1]))


def test_nan_in_a_page_stays_itself_when_it_is_scaled():
    """A slot that was never written must not cost its page the scale."""
    src = random_pool((1, 1, 4, 1, 16), torch.bfloat16)
    src[0, 0, 2] = NAN
    down, scale = torch.zeros(1, 1, 4, 1, 16, dtype=FP8), torch.zeros(1, 1, 1)
    swa_attn.copy_pages(src, down, torch.tensor([0]), torch.tensor([0]), dst_scale=scale)
    rest = src[0, 0, [0, 1, 3]].float()
    assert scale.item() == (rest.abs().max() / 448).item()
    assert torch.equal(bits(down[0, 0, [0, 1, 3]]), bits((rest / scale).to(FP8)))
    assert down[0, 0, 2].float().isnan().all()


@pytest.mark.parametrize(
    "asynchrony, order, seed", [("eager", "reverse", 1), ("random", "random", 2), ("random", "random", 3)]
)
def test_a_small_card_walks_over_many_pieces(asynchrony, order, seed):
    """One SM has 8 CTAs; each takes several of the 60 (layer, pair, head) and of the 40 (layer, pair, chunk)."""
    src = random_pool((5, 9, 40, 3, 64), torch.bfloat16)
    there, here = torch.tensor([8, 0, 3, 5]), torch.tensor([1, 2, 0, 3])
    down = [torch.zeros(5, 4, 40, 3, 64, dtype=FP8) for _ in range(2)]
    scale = [torch.zeros(5, 4, 3) for _ in range(2)]
    wide, moved = (torch.zeros(5, 4, 40, 3, 64) for _ in range(2))
    with emulated_backend.settings(num_sms=1, asynchrony=asynchrony, order=order, seed=seed):
        swa_attn.copy_pages(src, down[0], there, here, dst_scale=scale[0])
        swa_attn.copy_pages(down[0], wide, here, here, src_scale=scale[0])
        swa_attn.copy_pages(wide, moved, here, here.flip(0))
    reference.copy_pages(src, down[1], there, here, dst_scale=scale[1])
    assert torch.equal(bits(down[0]), bits(down[1])) and torch.equal(scale[0], scale[1])
    assert torch.equal(wide, down[1].float() * scale[1][:, :, None, :, None])
    assert torch.equal(moved[:, here.flip(0)], wide[:, here])


@pytest.mark.parametrize("max_smem_bytes, reads", [(99 << 10, 1), (2112, 1), (2048, 2)])
def test_pages_too_large_for_shared_memory_are_read_twice(max_smem_bytes, reads):
    src = random_pool((1, 2, 16, 2, 64), torch.bfloat16)  # 2048 bytes per head
    down = [torch.zeros(1, 2, 16, 2, 64, dtype=FP8) for _ in range(2)]
    scale = [torch.zeros(1, 2, 2) for _ in range(2)]
    pages = torch.tensor([0, 1]), torch.tensor([1, 0])
    with emulated_backend.settings(max_smem_bytes=max_smem_bytes):
        swa_attn.copy_pages(src, down[0], *pages, dst_scale=scale[0])
    assert counters().bytes_read("source_pages") == reads * src.numel() * 2
    reference.copy_pages(src, down[1], *pages, dst_scale=scale[1])
    assert torch.equal(bits(down[0]), bits(down[1])) and torch.equal(scale[0], scale[1])


def test_pages_move_within_a_pool():
    pool = random_pool((2, 6, 4, 2, 16), torch.float16)
    before = pool.clone()
    swa_attn.copy_pages(pool, pool, torch.tensor([5, 2]), torch.tensor([0, 1]))
    assert torch.equal(pool[:, :2], before[:, [5, 2]]) and torch.equal(pool[:, 2:], before[:, 2:])


@pytest.mark.parametrize("src_page, dst_page", [(3, 0), (0, 3), (2**40, 0), (0, 2**40)])
@pytest.mark.parametrize("dtype, scales", [(torch.float32, False), (FP8, True)], ids=str)
def test_copy_outside_a_pool_writes_nothing(src_page, dst_page, dtype, scales):
    src, dst = random_pool((2, 3, 4, 2, 16), torch.float32), torch.full((2, 3, 4, 2, 16), NAN).to(dtype)
    scale = torch.full((2, 3, 2), NAN)
    pages = torch.tensor([src_page]), torch.tensor([dst_page])
    swa_attn.copy_pages(src, dst, *pages, dst_scale=scale if scales else None)
    assert dst.float().isnan().all() and scale.isnan().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    "dim, shifts", [(64, (0, 0, 0)), (64, (1, 0, 0)), (64, (0, 1, 0)), (64, (0, 0, 1)), (7, (0, 0, 0))]
)
def test_merge_at_any_alignment(dtype, dim, shifts):
    generator = torch.Generator().manual_seed(0)
    a, b, out = (shifted(torch.randn(3, 2, 5, dim, generator=generator).to(dtype), n) for n in shifts)
    lse_a, lse_b, sinks = (torch.randn(shape, generator=generator) * 3 for shape in ((3, 2, 5), (3, 2, 5), (5,)))
    lse_a[0, 0, 1], lse_b[1, 1, 2] = -math.inf, -math.inf
    a[0, 0, 1], b[1, 1, 2] = NAN, NAN
    lse = torch.full((3, 2, 5), NAN)
    states = (x.view(-1, *x.shape[2:]) for x in (a, lse_a, b, lse_b))
    emulated_backend.merge_states(*states, sinks=sinks, out=out.view(-1, 5, dim), lse=lse.view(-1, 5))
    exact, exact_lse = reference.merge_states(a.double(), lse_a, b.double(), lse_b, sinks)
    assert ((out.double() - exact).abs() <= 2 * torch.finfo(dtype).eps * exact.abs().max()).all()
    torch.testing.assert_close(lse.double(), exact_lse, rtol=4e-7, atol=4e-7)


def assert_widest(ops, tag, num_bytes):
    """All bytes once, 16 per lane, and no more sectors than they fill."""
    traffic = counters().traffic(ops=ops, tag=tag)
    assert traffic.bytes == num_bytes
    assert traffic.lanes * 16 == num_bytes
    assert traffic.sectors == traffic.min_sectors == num_bytes // 32


@pytest.mark.parametrize("layout", ["nhd", "hnd", "packed"])
def test_traffic_of_append(layout):
    """MiMo-V2's windowed layers: 8 KV heads, 192/128."""
    key, value = new_tokens(4, 8, 192, 128, torch.bfloat16)
    pools = empty_pool((3, 16, 8, 192), 128, layout, torch.bfloat16, NAN)
    swa_attn.append_kv(key, value, *pools, torch.tensor([1, 2, 40, -1]))
    written = 3 * 8 * (192 + 128) * 2
    assert_widest("global_load", "new_tokens", written)
    assert_widest("global_store", "device_pages", written)


def test_traffic_of_append_to_float8_on_the_host():
    key, value = new_tokens(2, 8, 192, 128, torch.bfloat16)
    device, host = (empty_pool((n, 16, 8, 192), 128, "nhd", FP8, 0.0) for n in (1, 2))
    swa_attn.append_kv(key, value, *device, torch.tensor([20, 40]), k_host_cache=host[0], v_host_cache=host[1])
    assert_widest("global_load", "new_tokens", 2 * 8 * 320 * 2)
    stores = counters().traffic(ops="global_store", tag="host_pages")
    assert stores.bytes == 2 * 8 * 320 == stores.lanes * 8 and stores.sectors == stores.min_sectors
    assert counters().bytes_written("device_pages") == 0


@pytest.mark.parametrize("src_order, dst_order", [("layers", "layers"), ("layers", "pages"), ("heads", "layers")])
def test_traffic_of_copy(src_order, dst_order):
    src = random_pool((3, 5, 16, 2, 128), torch.bfloat16, ORDERS[src_order])
    dst = random_pool((3, 5, 16, 2, 128), torch.bfloat16, ORDERS[dst_order])
    swa_attn.copy_pages(src, dst, torch.tensor([4, -1, 2]), torch.tensor([0, 1, 3]))
    moved = 2 * 3 * 16 * 2 * 128 * 2
    assert_widest("global_load", "source_pages", moved)
    assert_widest("global_store", "target_pages", moved)


def test_traffic_of_float8_copies():
    src = random_pool((2, 3, 16, 2, 128), torch.bfloat16)
    down, scale = torch.zeros(2, 3, 16, 2, 128, dtype=FP8), torch.zeros(2, 3, 2)
    pages = torch.tensor([0, 2]), torch.tensor([2, 1])
    elements = 2 * 2 * 16 * 2 * 128
    swa_attn.copy_pages(src, down, *pages, dst_scale=scale)
    assert_widest("global_load", "source_pages", elements * 2)
    stores = counters().traffic(ops="global_store", tag="target_pages")
    assert stores.bytes == elements == stores.lanes * 8 and stores.sectors == stores.min_sectors
    assert counters().bank_conflicts() == 0
    swa_attn.copy_pages(down, src, pages[1], pages[0], src_scale=scale)
    loads = counters().traffic(ops="global_load", tag="source_pages")
    assert loads.bytes == elements == loads.lanes * 8 and loads.sectors == loads.min_sectors
    assert_widest("global_store", "target_pages", elements * 2)


def test_traffic_of_merge():
    a, b = torch.randn(2, 3, 4, 128).bfloat16()[..., :], torch.randn(2, 3, 4, 128).bfloat16()
    lse_a, lse_b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    lse_a[0, 0, 0] = -math.inf  # saves a row
    swa_attn.merge_states(a, lse_a, b, lse_b)
    row = 128 * 2
    assert counters().bytes_read("partials") == (24 + 23) * row + 2 * 24 * 4
    assert counters().bytes_written("outputs") == 24 * row + 24 * 4
    out = counters().traffic(ops="global_store", tag="outputs")
    assert out.lanes == 24 * 16 + 24

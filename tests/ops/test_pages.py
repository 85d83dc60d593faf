"""append_kv, copy_pages and merge_states of every backend."""

import pytest
import torch

import swa_attn
from swa_attn import reference
from swa_attn.testing.bounds import merge_bounds
from swa_attn.testing.cases import empty_pool
from swa_attn.testing.compare import assert_within, remember

FP8 = torch.float8_e4m3fn
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAN = float("nan")


def bits(x):
    """A tensor's bytes: compares NaN with NaN, and -0 apart from 0."""
    return x.contiguous().view(torch.uint8)


def new_tokens(num_tokens, heads, head_dim, v_head_dim, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(num_tokens, heads, head_dim, generator=generator)
    return key.to(dtype), torch.randn(num_tokens, heads, v_head_dim, generator=generator).to(dtype)


@pytest.mark.parametrize("layout", ["nhd", "hnd", "packed", "padded", "skewed"])
@pytest.mark.parametrize("page_size, head_dim, v_head_dim", [(1, 16, 16), (3, 192, 128), (16, 24, 7)])
def test_append_writes_its_slots_and_nothing_else(backend, layout, page_size, head_dim, v_head_dim):
    heads, num_pages = 2, 6
    shape = (num_pages, page_size, heads, head_dim)
    key, value = new_tokens(5, heads, head_dim, v_head_dim, torch.float32)
    slots = torch.tensor([num_pages * page_size - 1, -1, 0, 2, -(2**40)])
    got, expected = (empty_pool(shape, v_head_dim, layout, torch.float32, NAN) for _ in range(2))
    swa_attn.append_kv(key, value, *got, slots)
    reference.append_kv(key, value, *expected, slots)
    for mine, theirs in zip(got, expected, strict=True):
        base = mine._base if mine._base is not None else mine
        other = theirs._base if theirs._base is not None else theirs
        assert torch.equal(bits(base), bits(other))  # gaps of the layout included
    assert got[0].isnan().sum() == got[0].numel() - 3 * heads * head_dim


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cache_dtype", [*DTYPES, FP8], ids=str)
def test_append_casts_like_torch(backend, dtype, cache_dtype):
    key, value = new_tokens(4, 2, 32, 16, dtype)
    key[0] *= 1000  # beyond fp8's range: clamped, not NaN
    got, expected = (empty_pool((3, 4, 2, 32), 16, "nhd", cache_dtype, 0.0) for _ in range(2))
    slots = torch.tensor([11, 0, 6, 3])
    scales = {}
    if cache_dtype == FP8:
        scales = {"k_scale": torch.rand(3, 2) + 0.5, "v_scale": torch.rand(3, 2) + 0.5}
    swa_attn.append_kv(key, value, *got, slots, **scales)
    reference.append_kv(key, value, *expected, slots, **scales)
    assert torch.equal(bits(got[0]), bits(expected[0])) and torch.equal(bits(got[1]), bits(expected[1]))
    assert torch.isfinite(got[0].float()).all()


def test_append_to_fp8_without_scale_means_scale_one(backend):
    key, value = new_tokens(3, 2, 16, 16, torch.float32)
    pools = empty_pool((2, 4, 2, 16), 16, "nhd", FP8, 0.0)
    swa_attn.append_kv(key, value, *pools, torch.tensor([0, 1, 5]))
    assert torch.equal(bits(pools[0].flatten(0, 1)[[0, 1, 5]]), bits(key.to(FP8)))


def test_append_reaches_host_pages(backend):
    key, value = new_tokens(3, 2, 16, 8, torch.float32)
    device, host = (empty_pool((pages, 4, 2, 16), 8, "nhd", torch.float32, NAN) for pages in (3, 2))
    slots = torch.tensor([3 * 4 + 1, 2, 4 * 4 + 3])  # host page 0, device page 0, host page 1
    swa_attn.append_kv(key, value, *device, slots, k_host_cache=host[0], v_host_cache=host[1])
    assert torch.equal(host[0][0, 1], key[0]) and torch.equal(host[1][0, 1], value[0])
    assert torch.equal(device[0][0, 2], key[1])
    assert torch.equal(host[0][1, 3], key[2])
    assert host[0].isnan().sum() == host[0].numel() - 2 * 2 * 16


@pytest.mark.parametrize("slot", [12, 2**40])
def test_append_outside_the_pool_writes_nothing(backend, slot):
    if backend in ("triton", "cuda", "emulated"):
        pytest.skip("a GPU kernel does not look at values to report them")
    key, value = new_tokens(2, 2, 16, 16, torch.float32)
    pools = empty_pool((3, 4, 2, 16), 16, "nhd", torch.float32, NAN)
    with pytest.raises(IndexError):
        swa_attn.append_kv(key[1:], value[1:], *pools, torch.tensor([slot]))
    assert pools[0].isnan().all() and pools[1].isnan().all()


def layered(num_layers, num_pages, page_size=4, heads=2, dim=16, dtype=torch.float32, page_major=False, seed=None):
    """`[layers, pages, page_size, heads, dim]`, NaN or random; page-major memory when asked, as the host tier has it."""
    order = (num_pages, num_layers) if page_major else (num_layers, num_pages)
    shape = (*order, page_size, heads, dim)
    if seed is None:
        x = torch.full(shape, NAN)
    else:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = x.to(dtype)
    return x.transpose(0, 1) if page_major else x


@pytest.mark.parametrize("dtype", [*DTYPES, FP8], ids=str)
@pytest.mark.parametrize("src_major, dst_major", [(False, False), (False, True), (True, False)])
def test_copy_moves_bits(backend, dtype, src_major, dst_major):
    src = layered(3, 7, dtype=dtype, page_major=src_major, seed=1)
    src[0, 2, 0, 0, :4] = torch.tensor([NAN, float("inf"), -0.0, 0.0]).to(dtype)
    dst = layered(3, 5, dtype=dtype, page_major=dst_major)
    swa_attn.copy_pages(src, dst, torch.tensor([2, 6, -1, 0]), torch.tensor([4, 0, 1, -1]))
    assert torch.equal(bits(dst[:, 4]), bits(src[:, 2]))
    assert torch.equal(bits(dst[:, 0]), bits(src[:, 6]))
    assert dst[:, 1:4].float().isnan().all()


def test_copy_of_a_layer_range(backend):
    src, dst = layered(4, 3, seed=1), layered(4, 3)
    swa_attn.copy_pages(src[1:3], dst[1:3], torch.tensor([1]), torch.tensor([2]))
    assert torch.equal(dst[1:3, 2], src[1:3, 1])
    assert dst[[0, 3]].isnan().all() and dst[:, :2].isnan().all()


def test_copy_of_nothing(backend):
    dst = layered(2, 3)
    swa_attn.copy_pages(
        layered(2, 3, seed=1), dst, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    )
    assert dst.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copy_to_fp8_and_back(backend, dtype):
    src = layered(2, 3, dtype=dtype, seed=1)
    src[:, 1, :, 1] *= 100  # its own scale per head
    src[0, 2] = 0
    down, scale = layered(2, 4, dtype=FP8), torch.full((2, 4, 2), NAN)
    pages, slots = torch.tensor([1, 2]), torch.tensor([3, 0])
    swa_attn.copy_pages(src, down, pages, slots, dst_scale=scale)
    expected, expected_scale = layered(2, 4, dtype=FP8), torch.full((2, 4, 2), NAN)
    reference.copy_pages(src, expected, pages, slots, dst_scale=expected_scale)
    assert torch.equal(bits(scale), bits(expected_scale))
    assert torch.equal(bits(down), bits(expected))
    back = layered(2, 3, dtype=dtype)
    swa_attn.copy_pages(down, back, slots, pages, src_scale=scale)
    largest = src[:, pages].float().abs().amax(dim=(2, 4), keepdim=True)
    # e4m3 has 3 mantissa bits: half a step is 1/16 of the value, and the scaling rounds once more
    error = (back[:, pages].float() - src[:, pages].float()).abs()
    assert (error <= src[:, pages].float().abs() / 16 * 1.01 + largest * 2.0**-9).all()
    assert back[:, 0].float().isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_nan_of_an_unused_slot_does_not_spread_through_the_scale(backend, dtype):
    src = layered(1, 3, dtype=dtype, seed=1)
    src[0, 1, 2:] = NAN  # two slots of four were never written
    src[0, 2, :, 1] = NAN
    down, scale = layered(1, 3, dtype=FP8), torch.full((1, 3, 2), NAN)
    swa_attn.copy_pages(src, down, torch.tensor([1, 2]), torch.tensor([0, 1]), dst_scale=scale)
    used = src[0, 1, :2].float()
    assert torch.equal(scale[0, 0], used.abs().amax((0, 2)) / 448)
    back = down[0, 0].float() * scale[0, 0, :, None]
    assert ((back[:2] - used).abs() <= used.abs() / 15 + scale[0, 0, :, None] * 2.0**-9).all()
    assert back[2:].isnan().all() and down[0, 1, :, 1].float().isnan().all()
    assert torch.isfinite(scale[0, :2]).all() and torch.isfinite(down[0, 1, :, 0].float()).all()


def test_copy_of_fp8_carries_its_scales(backend):
    src, scale = layered(2, 3, dtype=FP8, seed=1), torch.rand(2, 3, 2)
    dst, dst_scale = layered(2, 3, dtype=FP8), torch.full((2, 3, 2), NAN)
    swa_attn.copy_pages(src, dst, torch.tensor([2]), torch.tensor([0]), src_scale=scale, dst_scale=dst_scale)
    assert torch.equal(bits(dst[:, 0]), bits(src[:, 2])) and torch.equal(dst_scale[:, 0], scale[:, 2])


def test_copy_beyond_two_to_the_31_elements(backend):
    torch.utils.deterministic.fill_uninitialized_memory = False
    num_pages = 2**31 // (64 * 2 * 64) + 4
    src = torch.empty(1, num_pages, 64, 2, 64, dtype=FP8)
    src[:, -1] = layered(1, 1, 64, 2, 64, FP8, seed=3)[:, 0]
    dst = torch.zeros(1, 2, 64, 2, 64, dtype=FP8)
    swa_attn.copy_pages(src, dst, torch.tensor([num_pages - 1]), torch.tensor([1]))
    assert torch.equal(bits(dst[:, 1]), bits(src[:, -1]))


@pytest.mark.parametrize("src_page, dst_page", [(3, 0), (0, 3), (2**40, 0)])
def test_copy_outside_a_pool_is_an_error(backend, src_page, dst_page):
    if backend in ("triton", "cuda", "emulated"):
        pytest.skip("a GPU kernel does not look at values to report them")
    dst = layered(2, 3)
    with pytest.raises(IndexError):
        swa_attn.copy_pages(layered(2, 3, seed=1), dst, torch.tensor([src_page]), torch.tensor([dst_page]))
    assert dst.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sinks", [False, True])
def test_merge(backend, dtype, sinks):
    generator = torch.Generator().manual_seed(0)
    out_a, out_b = (torch.randn(5, 3, 24, generator=generator) for _ in range(2))
    lse_a, lse_b = (torch.randn(5, 3, generator=generator) * 5 for _ in range(2))
    lse_a[1], lse_b[2], lse_a[3], lse_b[3] = (float("-inf"),) * 4
    out_a[1], out_b[2], out_a[3], out_b[3] = (NAN,) * 4  # an empty partial's out is not read
    lse_a[4], lse_b[4] = 300.0, -300.0
    sink = torch.randn(3, generator=generator) if sinks else None
    a, b = out_a.to(dtype), out_b.to(dtype)
    out, lse = swa_attn.merge_states(a, lse_a, b, lse_b, sinks=sink)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert (out[3] == 0).all() and (lse[3] == float("-inf")).all()
    exact = reference.merge_states(a.double(), lse_a, b.double(), lse_b, sink)
    bounds = merge_bounds(a, lse_a, b, lse_b, sink, dtype)
    remember(backend, assert_within(bounds, exact, (out, lse), "merge_states"))
    twice = (torch.zeros(3) if sink is None else sink) + torch.log(torch.tensor(2.0))  # counted twice, or at all
    exact = reference.merge_states(a.double(), lse_a, b.double(), lse_b, twice)
    with pytest.raises(AssertionError, match="out of merge_states"):
        assert_within(bounds, exact, (out, lse), "merge_states")


def merge_inputs(seed=0, rows=(3, 4), heads=3, dim=24):
    generator = torch.Generator().manual_seed(seed)
    outs = [torch.randn(*rows, heads, dim, generator=generator) for _ in range(2)]
    return [x for out in outs for x in (out, torch.randn(*rows, heads, generator=generator) * 3)]


@pytest.mark.parametrize("infinity", [float("inf"), float("-inf")])
def test_merge_takes_either_infinity_for_a_partial_without_keys(backend, infinity):
    """FlashAttention writes +inf; what lies in such a partial's out may be anything."""
    out_a, lse_a, out_b, lse_b = merge_inputs()
    lse_a[0, 0], out_a[0, 0] = infinity, NAN
    lse_b[1, 1], out_b[1, 1] = infinity, NAN
    lse_a[2, 2] = lse_b[2, 2] = infinity
    lse_a[2, 3], lse_b[2, 3] = infinity, -infinity
    out_a[2, 2:] = out_b[2, 2:] = NAN
    out, lse = swa_attn.merge_states(out_a, lse_a, out_b, lse_b, sinks=torch.full((3,), -80.0))
    torch.testing.assert_close(out[0, 0], out_b[0, 0])
    torch.testing.assert_close(lse[1, 1], lse_a[1, 1])
    assert (out[2, 2:] == 0).all() and (lse[2, 2:] == float("-inf")).all()
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("other", [0.0, float("-inf"), float("inf"), NAN], ids=str)
def test_merge_of_a_nan_lse_is_nan(backend, other):
    (out_a, lse_a, out_b, lse_b), other = merge_inputs(), torch.tensor(other)
    for first, second in ((lse_a, lse_b), (lse_b, lse_a)):
        first, second = first.clone(), second.clone()
        first[0, 0], second[0, 0] = NAN, other
        states = (out_a, first, out_b, second)
        out, lse = swa_attn.merge_states(*states)
        assert out[0, 0].isnan().all() and lse[0, 0].isnan().all()
        assert torch.isfinite(out[0, 1:]).all() and torch.isfinite(lse[1:]).all()


STRIDED = {  # how a partial of shape [3, 4, heads, dim] and its lse may lie in memory
    "lse by heads": lambda out, lse: (out, lse.permute(2, 0, 1).contiguous().permute(1, 2, 0)),
    "heads first": lambda out, lse: (out.transpose(1, 2).contiguous().transpose(1, 2), lse),
    "slice of a wider buffer": lambda out, lse: (torch.cat([out, out], -1)[..., : out.shape[-1]], lse),
    "last dimension strided": lambda out, lse: (out.mT.contiguous().mT, lse),
    "an element off": lambda out, lse: (torch.cat([out[..., :1], out], -1)[..., 1:], torch.cat([lse, lse], 2)[..., :3]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("layout", STRIDED)
def test_merge_takes_strided_partials(backend, layout, dtype):
    out_a, lse_a, out_b, lse_b = (x.to(dtype) if x.shape[-1] == 24 else x for x in merge_inputs())
    expected = swa_attn.merge_states(out_a, lse_a, out_b, lse_b)
    strided = STRIDED[layout](out_a, lse_a)
    assert not all(x.is_contiguous() for x in strided)
    for states in ((*strided, out_b, lse_b), (out_b, lse_b, *strided)):
        out, lse = swa_attn.merge_states(*states)
        assert out.is_contiguous() and lse.is_contiguous()
        torch.testing.assert_close(out, expected[0])
        torch.testing.assert_close(lse, expected[1])


def test_merge_of_an_expanded_partial(backend):
    """Inputs may overlap themselves: they are only read."""
    out_a, lse_a, out_b, lse_b = merge_inputs()
    expanded = out_a[:1].expand(3, -1, -1, -1)
    expected = swa_attn.merge_states(expanded.contiguous(), lse_a, out_b, lse_b)
    got = swa_attn.merge_states(expanded, lse_a, out_b, lse_b)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])

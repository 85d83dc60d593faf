"""The Triton backend's own pieces: the page-id decoder, float8 bits, tanh, the search for a tile's sequence, tiles."""

import itertools

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl

from swa_attn import reference
from swa_attn import triton as backend
from swa_attn.backends import Case
from swa_attn.triton import fp8, launch, pages, rows, scores, sequences, swa_decode, tiles
from swa_attn.triton.interpreter import INTERPRETED, dot

DEVICE = "cpu" if INTERPRETED.value else "cuda"
FP8 = torch.float8_e4m3fn


@triton.jit
def read_slots(out, pool, page, slot, i_head, N: tl.constexpr, D: tl.constexpr):
    i = tl.arange(0, N)
    o_dim = tl.arange(0, D)
    p = pages.slot_pointers(pool, tl.load(page + i), tl.load(slot + i), i_head, o_dim)
    tl.store(out + i[:, None] * D + o_dim[None, :], tl.load(p))


@pytest.mark.parametrize("num_device, num_host", [(3, 2), (1, 4), (5, 0)])
def test_page_ids_are_decoded_like_the_reference_does(num_device, num_host):
    page_size, heads, dim, n = 4, 2, 16, 8
    generator = torch.Generator().manual_seed(0)
    device = torch.randn(num_device, page_size, heads, dim, generator=generator).to(DEVICE)
    host = torch.randn(num_host, heads, page_size, dim, generator=generator).to(DEVICE).transpose(1, 2)
    ids = torch.arange(n) % (num_device + num_host)
    slots = torch.arange(n) % page_size
    out = torch.empty(n, dim, device=DEVICE)
    pool = pages.describe(device, host if num_host else None, None)
    read_slots[(1,)](out, pool, ids.to(DEVICE, torch.int32), slots.to(DEVICE, torch.int32), 1, n, dim)
    for i in range(n):
        on_host, index = reference.locate_page(int(ids[i]), num_device, num_host)
        assert torch.equal(out[i], (host if on_host else device)[index, int(slots[i]), 1])


@triton.jit
def convert(x, wide, narrow, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(narrow + i, fp8.to_fp8(tl.load(wide + i), narrow.dtype.element_ty))
    tl.store(wide + i, fp8.from_fp8(tl.load(x + i)))


def test_every_float8_is_read_exactly():
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    wide, narrow = torch.zeros(256, device=DEVICE), torch.zeros(256, dtype=torch.uint8, device=DEVICE)
    convert[(1,)](codes, wide, narrow, 256)
    torch.testing.assert_close(wide, codes.view(FP8).float(), rtol=0, atol=0, equal_nan=True)


def test_float8_is_written_like_torch_does():
    """Every value, every midpoint between two values, their neighbours, both signs, and what is out of range."""
    values = torch.arange(0x7F, dtype=torch.uint8).view(FP8).float()
    middles = (values[1:] + values[:-1]) / 2
    x = torch.cat([values, middles, torch.tensor([0.0, 447.9, 464.0, 1e9, float("inf"), 1e-30])])
    x = torch.cat([x, torch.nextafter(x, torch.tensor(float("inf"))), torch.nextafter(x, torch.tensor(0.0))])
    x = torch.cat([x, -x, torch.tensor([float("nan")])])
    x = torch.nn.functional.pad(x, (0, -len(x) % 512)).to(DEVICE)
    narrow = torch.zeros(len(x), dtype=torch.uint8, device=DEVICE)
    unused = torch.zeros(len(x), dtype=torch.uint8, device=DEVICE)
    convert[(len(x) // 512,)](unused, x.clone(), narrow, 512)
    assert torch.equal(narrow, reference.to_cache_dtype(x, FP8, None).view(torch.uint8))


@triton.jit
def tanh_of(out, x, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, scores.tanh(tl.load(x + i)))


def test_tanh_is_accurate_from_tiny_to_infinite():
    x = torch.cat([torch.logspace(-30, 4, 500), torch.linspace(0.5, 0.7, 522), torch.tensor([0.0, float("inf")])])
    x = torch.cat([x, -x]).to(DEVICE)
    out = torch.empty_like(x)
    tanh_of[(1,)](out, x, len(x))
    exact = torch.tanh(x.double())
    assert ((out.double() - exact).abs() <= 4 * 2.0**-24 * exact.abs()).all()


@triton.jit
def multiply(out, a, b, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    m, k, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(out + m[:, None] * N + n[None, :], dot(x, y, tl.zeros([M, N], tl.float32)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dot_does_not_depend_on_the_row(dtype):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1, 64, generator=generator).to(DEVICE, dtype).repeat(32, 1)
    b = torch.randn(64, 16, generator=generator).to(DEVICE, dtype)
    out = torch.empty(32, 16, device=DEVICE)
    multiply[(1,)](out, a, b, 32, 64, 16)
    assert torch.equal(out, out[:1].expand(32, -1))
    assert ((out[0].double() - a[0].double() @ b.double()).abs() <= 1e-5).all()


@triton.jit
def all_tiles(out, cu, num_seqs, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr):
    i = tl.program_id(0)
    i_seq, i_tile = sequences.sequence_of_tile(cu, num_seqs, i, GROUP, BLOCK_M, CHUNK)
    tl.store(out + i * 2, i_seq)
    tl.store(out + i * 2 + 1, i_tile)


@pytest.mark.parametrize("group, block_m", [(1, 16), (3, 16), (5, 32), (16, 16), (8, 128)])
def test_every_tile_of_every_sequence_is_found(group, block_m):
    lengths = [0, 1, 0, 17, 5, 40, 0, 1, 1, 1, 33, 0]
    cu = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)
    num_tiles = sequences.bound_num_tiles(sum(lengths) * group, len(lengths), block_m)
    out = torch.empty(num_tiles, 2, dtype=torch.int32, device=DEVICE)
    all_tiles[(num_tiles,)](out, cu, len(lengths), group, block_m, 4)
    found = {(seq, tile) for seq, tile in out.tolist() if tile * block_m < lengths[seq] * group}
    assert len(found) == sum(1 for seq, tile in out.tolist() if tile * block_m < lengths[seq] * group)
    assert found == {(s, t) for s, n in enumerate(lengths) for t in range(-(-n * group // block_m))}


@triton.jit
def accept(out, acc, sums, first_row, end_row, end_tile, GROUP: tl.constexpr, M: tl.constexpr, D: tl.constexpr):
    i, o_dim = tl.arange(0, M), tl.arange(0, D)
    b_acc = tl.load(acc + i[:, None] * D + o_dim[None, :])
    stored, first, end = rows.accept_rows(b_acc, tl.load(sums + i), first_row, end_row, end_tile, GROUP)
    tl.store(out, stored)
    tl.store(out + 1, first)
    tl.store(out + 2, end)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_are_repeated_token_by_token_where_a_value_may_have_leaked(value):
    m, dim, group = 16, 16, 3

    def ask(acc, sums, first_row, end_row, end_tile):
        out = torch.zeros(3, dtype=torch.int32, device=DEVICE)
        accept[(1,)](out, acc.to(DEVICE), sums.to(DEVICE), first_row, end_row, end_tile, group, m, dim)
        return tuple(out.tolist())

    fine, sums = torch.full((m, dim), 3e38), torch.ones(m)
    wrong = fine.clone()
    wrong[5, 7] = value
    assert ask(fine, sums, 16, 32, 32) == (16, 32, 32), "a finite tile is done at once"
    assert ask(wrong, sums, 16, 32, 32) == (32, 16, 18), "the first token has only two of its rows in the tile"
    assert ask(wrong, sums, 16, 18, 32) == (16, 18, 21), "one token's own value"
    assert ask(wrong, sums, 30, 32, 32) == (30, 32, 32), "the last token ends with the tile"
    sums[5] = float("nan")
    assert ask(wrong, sums, 16, 32, 32) == (16, 32, 32), "a row of NaN scores"


@pytest.mark.parametrize("head_dim", [8, 16, 24, 64, 80, 96, 112, 128, 192, 256])
def test_head_dims_are_cut_with_little_padding(head_dim):
    dims = launch.cut_head_dims(head_dim, head_dim)
    assert dims.DK_HEAD + dims.DK_TAIL >= head_dim and dims.DV_TILE >= head_dim
    for size in (dims.DK_HEAD, dims.DK_TAIL, dims.DV_TILE):
        assert size == 0 or (size >= 16 and size & (size - 1) == 0)
    if head_dim in (64, 128, 192, 256):
        assert dims.DK_HEAD + dims.DK_TAIL == head_dim


def test_tiles_divide_splits_and_hold_what_a_dot_needs():
    for arch, dim, group in itertools.product((80, 90, 100), (8, 64, 128, 192, 256), (1, 4, 5, 8, 16, 33, 64)):
        for q_itemsize, cache_itemsize in ((2, 2), (2, 1), (4, 4), (4, 1)):
            for tile in (
                tiles.prefill_tile(arch, dim, dim, q_itemsize, cache_itemsize),
                tiles.decode_tile(arch, dim, dim, q_itemsize, cache_itemsize, group),
            ):
                assert tiles.SPLIT % tile.block_n == 0
                assert tile.block_m >= 16 and tile.block_n >= 16


@pytest.mark.parametrize("window, q_len, context", [(-1, 1, 0), (-1, 1, 513), (513, 1, 9000), (4096, 8, 9000)])
def test_the_bound_on_splits_covers_every_length(window, q_len, context):
    bound = swa_decode.num_splits_bound(window, q_len, context)
    for length in range(context + 1):
        first = max(0, length - q_len - window + 1) if window > 0 else 0
        assert -(-length // tiles.SPLIT) - first // tiles.SPLIT <= bound


def test_more_splits_than_programs_take_turns(monkeypatch):
    """A grid smaller than the number of splits changes no bit."""
    from swa_attn.testing import AttentionCase, build

    inputs = build(AttentionCase(seqs=((2, 1200), (2, 40)), window=None, page_size=64))
    arguments = [x.to(DEVICE) for x in inputs.decode_args]
    results = []
    for limit in (tiles.MAX_SPLIT_PROGRAMS, 1):
        monkeypatch.setattr(swa_decode, "MAX_SPLIT_PROGRAMS", limit)
        out, lse = torch.empty(2, 2, 4, 16, device=DEVICE), torch.empty(2, 2, 4, device=DEVICE)
        backend.decode(*arguments, softmax_scale=0.25, out=out, lse=lse)
        results.append((out, lse))
    assert torch.isfinite(results[0][0]).all()
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_what_it_lacks(monkeypatch):
    case = Case("decode", "triton", "cuda", torch.float16, torch.float16, 16, 8, 512, 512)
    assert backend.lacks(case) == "head_dim 512 and v_head_dim 512 must be at most 256"
    assert backend.lacks(Case("merge_states", "triton", "mps", torch.float16)) == "no Triton kernels for device mps"
    monkeypatch.setattr(backend, "INTERPRETED", tl.constexpr(False))
    assert "needs a CUDA device" in backend.lacks(Case("merge_states", "triton", "cpu", torch.float16))

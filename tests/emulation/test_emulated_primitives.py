"""What each primitive computes, against the layouts of the PTX ISA written down here, and kernels that combine them."""

import math

import pytest
import torch

from swa_attn.testing.emulator import Options, reads, writes

ARITHMETIC = ["exact", "above", "below", "edges"]
SOME_OPTIONS = [Options(), Options("eager", "reverse"), Options("random", "random", seed=7)]
LANES = range(32)
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def random(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_bits(shape, dtype=torch.int32):
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def fresh(shape, dtype=torch.int32):
    return torch.full(shape, float("nan") if dtype.is_floating_point else -1, dtype=dtype)


def as_halves(registers):
    """[..., n] 32-bit registers as [..., n, 2] 16-bit elements, low half first."""
    return registers.contiguous().view(torch.int16).unflatten(-1, (-1, 2))


# ldmatrix: of matrix i lane l holds element (l / 4, 2 (l % 4)) and its neighbour to the right; transposed, (2 (l % 4),
# l / 4) and the one below.
ROW = torch.tensor([lane // 4 for lane in LANES])
PAIR = torch.tensor([[lane % 4 * 2, lane % 4 * 2 + 1] for lane in LANES])


def test_ldmatrix(emulator):
    tile, out = random_bits((32, 8), torch.int16), fresh((5, 32, 4))
    emulator.launch("ldmatrix", **{"in": reads(tile, "in")}, out=writes(out)).check()
    matrices, registers = tile.view(4, 8, 8), as_halves(out)
    for variant, (count, transposed) in enumerate([(1, False), (2, False), (4, False), (2, True), (4, True)]):
        for i in range(4):
            m = matrices[i].T if transposed else matrices[i]
            expected = m[ROW[:, None], PAIR] if i < count else torch.zeros(32, 2, dtype=torch.int16)
            assert registers[variant, :, i].equal(expected), (variant, i)


def test_stmatrix(emulator):
    registers, out = random_bits((32, 4)), fresh((2, 32, 4))
    emulator.launch("stmatrix", **{"in": reads(registers, "in")}, out=writes(out)).check()
    stored = out.view(torch.int16).view(2, 4, 8, 8)
    for i in range(4):
        elements = as_halves(registers)[:, i]
        assert stored[0, i][ROW[:, None], PAIR].equal(elements)
        assert stored[1, i].T[ROW[:, None], PAIR].equal(elements)


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("dtype", HALVES)
def test_mma(emulator, dtype, arithmetic):
    a, b, c = random((16, 16), HALVES[dtype]), random((16, 8), HALVES[dtype], 1), random((16, 8), seed=2)
    g, t = ROW, PAIR[:, 0]
    pairs = torch.arange(2)

    def pack(elements):  # [32, n, 2] -> [32, n] registers
        return elements.contiguous().view(torch.int32).squeeze(-1)

    # PTX ISA, m16n8k16: a0 (g, t), a1 (g + 8, t), a2 (g, t + 8), a3 (g + 8, t + 8); b0 (t, g), b1 (t + 8, g).
    a_rows = torch.stack([g, g + 8, g, g + 8], 1)[..., None]
    a_columns = torch.stack([t, t, t + 8, t + 8], 1)[..., None] + pairs
    b_rows = torch.stack([t, t + 8], 1)[..., None] + pairs
    c_rows = torch.stack([g, g, g + 8, g + 8], 1)
    c_columns = torch.stack([t, t + 1, t, t + 1], 1)
    out = fresh((32, 4), torch.float32)
    emulator.launch(
        f"mma_{dtype}",
        Options(arithmetic=arithmetic),
        a=reads(pack(a[a_rows, a_columns]), "a"),
        b=reads(pack(b[b_rows, g[:, None, None]]), "b"),
        c=reads(c[c_rows, c_columns].contiguous(), "c"),
        out=writes(out),
    ).check()
    exact = a.double() @ b.double() + c
    # 17 roundings of fp32 on sums of |terms|; twice 9 terms and the sum cut at 2^-23 of the largest term's power of two
    bound = (a.double().abs() @ b.double().abs() + c.abs()) * (
        17 * 2**-24 if arithmetic in ("exact", "edges") else 20 * 2**-23
    )
    error = (out.double() - exact[c_rows, c_columns]).abs()
    assert (error <= bound[c_rows, c_columns]).all()
    assert (error > 0).any()


def test_shuffles_and_votes(emulator):
    values, out = random((32,)), fresh((32, 6))
    emulator.launch("shuffle", **{"in": reads(values, "in")}, out=writes(out)).check()
    lanes = torch.arange(32)
    assert out[:, 0].view(torch.float32).equal(values[lanes ^ 5])
    assert out[:, 1].view(torch.float32).equal(values[(lanes + 3) % 32])
    votes = [sum(1 << i for i in LANES if i % 3 == 0), sum(1 << i for i in LANES if i % 5 == 0)]
    assert (out[:, 2].long() & 0xFFFFFFFF == votes[0]).all()
    half = torch.where(lanes < 16, votes[1] & 0xFFFF, votes[1] & 0xFFFF0000)
    assert (out[:, 3].long() & 0xFFFFFFFF).equal(half)
    assert (out[:, 4] == 1).all() and (out[:, 5] == 0).all()


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
def test_one_lane_is_elected(emulator, options):
    out = fresh((32,))
    emulator.launch("elect", options, out=writes(out)).check()
    assert out.sum() == 1


def test_math(emulator):
    x = torch.tensor([0.0, 1.0, 0.5, 3.25, 1e-3, 65519.0, 65520.0, 1e-7, 126.0, 2**-140, float("inf"), float("nan")])
    x = torch.cat([x, random((32 - len(x),)).abs()])
    out = fresh((32, 7), torch.float32)
    emulator.launch("math", **{"in": reads(x, "in")}, out=writes(out)).check()
    for i, expected in enumerate([torch.exp2(x), torch.log2(x), torch.tanh(x)]):
        torch.testing.assert_close(out[:, i], expected, rtol=2**-22, atol=2**-126, equal_nan=True)
    for i, dtype in ((3, torch.bfloat16), (5, torch.float16)):
        assert torch.equal(out[:, i].nan_to_num(7), x.to(dtype).float().nan_to_num(7))
        assert torch.equal(out[:-1, i + 1].nan_to_num(7), -x.to(dtype).float().nan_to_num(-7)[:-1])


@pytest.mark.parametrize("arithmetic", ARITHMETIC[1:])
def test_approximate_instructions_at_the_ends_of_their_documented_errors(emulator, arithmetic):
    """Within them, at most a rounding away from the end, on the side that was asked for; what PTX lists stays exact."""
    x = torch.cat([torch.tensor([0.0, 1.0, -0.0, float("inf"), float("nan")]), 3 * random((27,), seed=9)])
    out = fresh((32, 7), torch.float32)
    emulator.launch("math", Options(arithmetic=arithmetic), **{"in": reads(x, "in")}, out=writes(out)).check()
    ex2, lg2, tanh = (torch.exp2(x.double()), torch.log2(x.double()), torch.tanh(x.double()))
    ulp = 2.0 ** (ex2.log2().floor() - 23)
    absolute = (x > 0.5) & (x < 2)
    errors = (
        2 * ulp,
        torch.where(absolute, 2.0**-22, lg2.abs() * 2**-22),
        tanh.abs() * 2**-11,
    )
    signs = []
    for got, exact, error in zip(out[:, :3].double().T, (ex2, lg2, tanh), errors):
        special = (x == 0) | ~torch.isfinite(exact) | ~torch.isfinite(error)
        torch.testing.assert_close(got[special], exact[special], rtol=0, atol=0, equal_nan=True)
        shares = ((got - exact) / error)[~special]
        assert (shares.abs() <= 1).all() and (shares.abs() >= 0.5).all()
        signs.append(shares.sign())
    signs = torch.cat(signs)
    assert {"above": (signs > 0).all(), "below": (signs < 0).all()}.get(arithmetic, 0 < (signs > 0).sum() < len(signs))


def test_ex2_of_very_small_results_is_zero(emulator):
    x, out = torch.full((32,), -127.0), fresh((32, 7), torch.float32)
    emulator.launch("math", **{"in": reads(x, "in")}, out=writes(out)).check()
    assert (out[:, 0] == 0).all()


def test_loads_and_stores(emulator):
    inputs = {width: random_bits((32, width // 4)) for width in (4, 8, 16)}
    outputs = {width: fresh((32, width // 4)) for width in inputs}
    arguments = {f"in{w}": reads(t, "in") for w, t in inputs.items()}
    emulator.launch("ld_st", **arguments, **{f"out{w}": writes(t) for w, t in outputs.items()}).check()
    for width, out in outputs.items():
        assert out.equal(inputs[width][torch.arange(32) ^ 9])


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
@pytest.mark.parametrize("num_bytes", [4, 8, 16])
def test_cp_async_fills_with_zeros(emulator, num_bytes, options):
    data = torch.randint(1, 255, (32, 16), dtype=torch.uint8)
    sizes, out = torch.arange(32, dtype=torch.int32) % (num_bytes + 1), fresh((32, 4))
    emulator.launch(
        "cp_async", options, **{"in": reads(data, "in")}, sizes=reads(sizes, "in"), out=writes(out), bytes=num_bytes
    ).check()
    expected = torch.where(torch.arange(16) < sizes[:, None], data, 0)[:, :num_bytes]
    assert out.view(torch.uint8)[:, :num_bytes].equal(expected)


def tma_arguments(tensor, box, coordinates, swizzle, out, instruction_rank=None):
    """Arguments in TMA's order, dimension 0 innermost; `box` and `coordinates` already are."""
    arguments = {"in": reads(tensor, "in"), "out": writes(out), "rank": tensor.ndim, "swizzle": swizzle}
    arguments["instruction_rank"] = instruction_rank or tensor.ndim
    for i, (size, stride) in enumerate(zip(reversed(tensor.shape), reversed(tensor.stride()))):
        arguments |= {f"size{i}": size, f"stride{i}": stride * 2, f"box{i}": box[i]}
    return arguments | {f"c{i}": ([*coordinates, 0, 0])[i] for i in range(4)}


TMA_CASES = {  # tensor shape, box, coordinates, swizzle (bytes of the inner box)
    "2d_inside": ((20, 64), (64, 8), (0, 5), 3),
    "2d_inner_edges": ((20, 40), (16, 8), (32, 0), 0),
    "2d_cut_inside_16_bytes": ((20, 44), (16, 8), (32, 0), 1),
    "2d_left_and_top": ((20, 40), (32, 8), (-8, -3), 2),
    "2d_negative_odd": ((20, 40), (32, 8), (-3, 1), 2),
    "2d_all_outside": ((20, 40), (16, 4), (0, 20), 0),
    "3d_row_edge": ((6, 5, 64), (64, 1, 8), (0, 4, 3), 3),
    "3d_boxes": ((6, 5, 32), (32, 3, 2), (0, 3, 5), 2),
    "4d_page": ((7, 16, 3, 64), (64, 1, 16, 1), (0, 2, 0, 4), 3),
    "4d_page_outside": ((7, 16, 3, 64), (64, 1, 16, 1), (0, 2, 0, 7), 3),
}


@pytest.mark.parametrize("case", TMA_CASES)
def test_tma(emulator, case):
    shape, box, start, swizzle = TMA_CASES[case]
    # A row stride that TMA accepts, with NaN between the rows where the tensor is narrower.
    padded = -(-shape[-1] // 8) * 8
    tensor = torch.full((*shape[:-1], padded), float("nan")).bfloat16()[..., : shape[-1]]
    tensor.copy_(random(shape))
    out = fresh((math.prod(box) // 2,))
    run = emulator.launch("tma", **tma_arguments(tensor, box, start, swizzle, out)).check()
    expected = torch.zeros(*reversed(box), dtype=torch.bfloat16)
    wanted, there = [], []
    for size, length, first in zip(reversed(shape), box, start):
        low, high = max(first, 0), max(min(first + length, size), max(first, 0))
        wanted.insert(0, slice(low, high))
        there.insert(0, slice(low - first, high - first))
    expected[tuple(there)] = tensor[tuple(wanted)]
    # Rows of the box lie one after the other; 16-byte chunks are exchanged by address bits 7 and up.
    chunks = expected.reshape(-1, 8)
    at = torch.arange(len(chunks))
    mask = (0, 1, 3, 7)[swizzle]
    swizzled = torch.empty_like(chunks)
    swizzled[at ^ (at >> 3 & mask)] = chunks
    assert out.view(torch.bfloat16).view(-1, 8).equal(swizzled)
    inside = tensor[tuple(wanted)].numel() * 2
    assert run.counters.bytes_read("in") == inside


TMA_STORES = {  # as TMA_CASES
    "outputs": ((40, 64, 128), (64, 8, 2), (64, 16, 38), 3),
    "row_edge": ((6, 5, 64), (64, 1, 8), (0, 4, 3), 3),
    "boxes": ((6, 5, 32), (32, 3, 2), (0, 3, 5), 2),
    "negative": ((6, 5, 32), (16, 4, 4), (-8, -2, 1), 1),
    "cut_inside_16_bytes": ((4, 3, 44), (16, 2, 2), (32, 1, 1), 0),
    "all_outside": ((6, 5, 32), (32, 1, 4), (0, 0, 6), 0),
}


@pytest.mark.parametrize("case", TMA_STORES)
def test_tma_store(emulator, case):
    """What lies outside the tensor is left out: the elements between narrow rows, too, stay as they were."""
    shape, box, start, swizzle = TMA_STORES[case]
    padded = -(-shape[-1] // 8) * 8
    whole = torch.full((*shape[:-1], padded), 7.0).bfloat16()
    tensor, values = whole[..., : shape[-1]], random(tuple(reversed(box))).bfloat16()
    chunks = values.reshape(-1, 8)
    at = torch.arange(len(chunks))
    box_in_memory = torch.empty_like(chunks)
    box_in_memory[at ^ (at >> 3 & (0, 1, 3, 7)[swizzle])] = chunks
    arguments = tma_arguments(tensor, box, start, swizzle, tensor)
    arguments |= {"in": reads(box_in_memory, "in"), "out": writes(tensor)}
    expected, wanted, there = whole.clone(), [], []
    for size, length, first in zip(reversed(shape), box, start):
        low, high = max(first, 0), max(min(first + length, size), max(first, 0))
        wanted.insert(0, slice(low, high))
        there.insert(0, slice(low - first, high - first))
    expected[..., : shape[-1]][tuple(wanted)] = values[tuple(there)]
    run = emulator.launch("tma_store", **arguments).check()
    assert whole.equal(expected)
    assert run.counters.traffic(ops="tma_store").bytes == tensor[tuple(wanted)].numel() * 2


def test_float8_as_half(emulator):
    out = fresh((65536,))
    emulator.launch("e4m3", out=writes(out)).check()
    pairs = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    expected = pairs.view(torch.float8_e4m3fn).half().view(65536, 2)
    found = out.view(torch.float16).view(65536, 2)
    assert torch.equal(found.nan_to_num(7000), expected.nan_to_num(7000))
    assert (out.view(torch.int16)[expected.isnan().flatten()] == 0x7FFF).all()


def test_a_dependent_kernel_finds_what_the_one_ahead_wrote(emulator):
    words, out = fresh((2048,)), fresh((2048,))
    emulator.launch("dependent", words=writes(words), out=writes(out)).check()
    assert out.equal(words) and (words != -1).any()


def test_tma_checks_its_arguments(emulator):
    tensor, out = random((20, 64)).bfloat16(), fresh((256,))

    def launch(box=(64, 8), swizzle=3, shape=tensor, rank=None):
        return emulator.launch("tma", **tma_arguments(shape, box, (0, 0), swizzle, out, rank))

    launch().check()
    assert launch(rank=3).kinds == {"invalid"}
    with pytest.raises(RuntimeError, match="exceeds the swizzle span"):
        launch(swizzle=2)
    with pytest.raises(RuntimeError, match=r"box of dimension 1 must be 1\.\.256, got 257"):
        launch(box=(64, 257))
    with pytest.raises(RuntimeError, match="multiple of 16 bytes, got 8"):
        launch(box=(4, 8), swizzle=0)
    with pytest.raises(RuntimeError, match="stride of dimension 1 must be a multiple of 16"):
        launch(shape=random((20, 65)).bfloat16()[:, :64])
    with pytest.raises(RuntimeError, match="not inside a registered buffer"):
        arguments = tma_arguments(tensor, (64, 8), (0, 0), 3, out)
        emulator.launch("tma", **(arguments | {"size1": 21}))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "n, major, source",
    [(n, "k", "ss") for n in (16, 32, 48)] + [(n, m, s) for n in (64, 128) for m in ("k", "mn") for s in ("ss", "rs")],
)
def test_wgmma(emulator, n, dtype, major, source):
    a, b = random((64, 64), HALVES[dtype]), random((64, n), HALVES[dtype], 1)  # b is [k, n]
    exact = a.double() @ b.double()
    bound = a.double().abs() @ b.double().abs() * 64 * 2**-24
    for options in SOME_OPTIONS:
        out = fresh((64, n), torch.float32)
        stored = b.T.contiguous() if major == "k" else b
        run = emulator.launch(
            f"wgmma_{n}_{dtype}_{major}_{source}", options, a=reads(a, "a"), b=reads(stored, "b"), out=writes(out)
        ).check()
        assert ((out.double() - exact).abs() <= bound).all()
        assert run.counters.tallies["wgmma"] == 4
        assert run.counters.useful_mma_share(64 * 64 * n) == 1.0


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
def test_named_barriers_and_votes(emulator, options):
    data, out = torch.arange(256, dtype=torch.int32) * 3 + 1, fresh((256,))
    emulator.launch("exchange", options, **{"in": reads(data, "in")}, out=writes(out), grid=2).check()
    expected = data.view(4, 64).flip(1).flatten() * 2
    expected[[127, 255]] += 1000 + 1
    assert out.equal(expected)


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
def test_cp_async_completes_on_an_mbarrier(emulator, options):
    data, out = random_bits((128,)), fresh((128,))
    emulator.launch("handover", options, **{"in": reads(data, "in")}, out=writes(out)).check()
    assert out.equal(data)


def cluster_sum(emulator, options):
    data = (torch.arange(4 * 64 * 64) * 7 % 13 - 6).view(-1, 64).bfloat16()
    bias, out = (torch.arange(64) % 5).float(), fresh((2, 128), torch.float32)
    arguments = {"in": reads(data, "in"), "bias": reads(bias, "in"), "out": writes(out), "num_tiles": 4}
    run = emulator.launch("cluster_sum", options, **arguments)
    return run, out.double().sum(1), (data.double() * bias).sum()


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
def test_cluster_multicast_and_bulk_copies(emulator, options):
    run, sums, expected = cluster_sum(emulator, options)
    run.check()
    assert sums.tolist() == [expected, expected]  # integers, exact in fp32
    # Each half tile is read once and lands in both CTAs.
    assert run.counters.traffic(ops="tma_load").bytes == 4 * 64 * 64 * 2


@pytest.mark.parametrize("options", SOME_OPTIONS, ids=str)
@pytest.mark.parametrize("bug, kind", [(20, "proxy-fence"), (21, "exited-peer")])
def test_planted_mistakes_in_the_cluster_kernel(emulator, bug, kind, options):
    run, _, _ = cluster_sum(emulator, Options(options.asynchrony, options.order, options.seed, bug=bug))
    assert kind in run.kinds


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"grid": 3, "threads": 32, "smem_bytes": 0, "cluster": 2}, "not a multiple of the cluster size 2"),
        ({"grid": 0, "threads": 32, "smem_bytes": 0, "cluster": 1}, "the grid is empty"),
        ({"grid": 1, "threads": 1025, "smem_bytes": 0, "cluster": 1}, "1025 threads per block"),
        ({"grid": 1, "threads": 32, "smem_bytes": 232449, "cluster": 1}, "232449 bytes of shared memory"),
    ],
)
def test_launches_no_gpu_takes(emulator, arguments, message):
    with pytest.raises(ValueError, match=message):
        emulator.launch("bad_launch", **arguments)


def test_errors_of_the_python_side(emulator):
    with pytest.raises(ValueError, match=r"no emulated kernel is called 'nonsense'; there are: .*fa_sm80"):
        emulator.launch("nonsense")
    with pytest.raises(ValueError, match="the kernel needs a buffer 'out'"):
        emulator.launch("elect")
    with pytest.raises(ValueError, match="out: expected a CPU tensor, got one on meta"):
        emulator.launch("elect", out=writes(torch.empty(32, device="meta")))
    with pytest.raises(TypeError, match=r"out: expected reads\(...\), writes\(...\), int, float or None, got str"):
        emulator.launch("elect", out="here")
    with pytest.raises(ValueError, match="unknown value 'late' of option asynchrony"):
        emulator.launch("elect", Options(asynchrony="late"), out=writes(fresh((32,))))

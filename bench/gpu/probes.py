"""The probes of the conformance run: which test kernel, on which inputs, and how far card and emulator may differ.

Where the ISA defines the result they must agree bit for bit (any NaN equals any NaN). It leaves open in which order matrix
instructions add, which lane is elected, and the last bits of ex2, lg2 and tanh; there the bound is stated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from swa_attn.testing.emulator import Buffer, reads, writes

Arguments = dict[str, Buffer | int | float | None]
# ISA's bounds for the approximations, relative; lg2's is absolute between 0.5 and 2.
EX2_ERROR, LG2_ERROR, TANH_ERROR = 2**-22, 2**-22, 2**-11
FP32_ROUNDING = 2**-24


@dataclass(frozen=True)
class Probe:
    """One launch of a test kernel. `arguments` builds fresh inputs and outputs; `error` takes what the emulator and the
    card wrote and gives the worst difference as a share of what is allowed: at most 1 is right, 0 is equal bits."""

    name: str
    kernel: str
    primitives: tuple[str, ...]
    arguments: Callable[[], Arguments]
    error: Callable[[list[Tensor], list[Tensor]], float]
    bound: str = "bit for bit"
    needs_sm90: bool = False


def same_bits(emulated: list[Tensor], on_card: list[Tensor]) -> float:
    """0 if all outputs have the same bits, else infinity."""
    for mine, theirs in zip(emulated, on_card, strict=True):
        both_nan = (
            mine.isnan() & theirs.isnan() if mine.is_floating_point() else torch.zeros_like(mine, dtype=torch.bool)
        )
        as_bits = {2: torch.int16, 4: torch.int32}[mine.element_size()]
        if not ((mine.view(as_bits) == theirs.view(as_bits)) | both_nan).all():
            return math.inf
    return 0.0


def share(difference: Tensor, allowed: Tensor) -> float:
    """The worst difference over its bound; NaN counts as infinite."""
    ratio = torch.where(difference == 0, 0.0, difference / allowed)
    return ratio.nan_to_num(nan=math.inf, posinf=math.inf).max().item()


def one_elected(emulated: list[Tensor], on_card: list[Tensor]) -> float:
    """Any lane may be the one, but exactly one must be."""
    return 0.0 if all(int(out.sum()) == 1 for out in (emulated[0], on_card[0])) else math.inf


def approximations(emulated: list[Tensor], on_card: list[Tensor]) -> float:
    """The outputs of `sweep`: three approximate functions, then conversions, which must agree in every bit."""
    mine, theirs = emulated[0].double(), on_card[0].double()
    worst = same_bits([emulated[0][:, 3:].contiguous()], [on_card[0][:, 3:].contiguous()])
    for column, relative in enumerate((EX2_ERROR, LG2_ERROR, TANH_ERROR)):
        exact, got = mine[:, column], theirs[:, column]
        allowed = exact.abs() * (relative + 2 * FP32_ROUNDING)
        if column == 1:
            allowed = torch.where(exact.abs() < 1, LG2_ERROR + 2 * FP32_ROUNDING, allowed)
        same = (exact == got) | (exact.isnan() & got.isnan())
        difference = torch.where(same, 0.0, (exact - got).abs())
        worst = max(worst, share(difference, allowed))
    return worst


def sums(products: int, magnitudes: Tensor) -> Callable[[list[Tensor], list[Tensor]], float]:
    """For sums of `products` terms whose absolute values add up to `magnitudes`: the ISA leaves their order and the
    rounding of each step open; each of the two may be off by one fp32 truncation (2^-23) per term."""

    def error(emulated: list[Tensor], on_card: list[Tensor]) -> float:
        allowed = magnitudes.double() * (2 * (products + 1) * 2**-23)
        return share((emulated[0].double() - on_card[0].double()).abs(), allowed)

    return error


SUMS = "2^-22 per term, of the sum of magnitudes"
LANES = torch.arange(32)
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bits(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, shape, generator=generator(1), dtype=dtype)


def unwritten(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.full(shape, math.nan if dtype.is_floating_point else -1, dtype=dtype)


def integers(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Small whole numbers: their products and sums are exact in fp32, in any order."""
    return torch.randint(-4, 5, shape, generator=generator(seed)).to(dtype)


def normals(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed)).to(dtype)


def in_out(data: Tensor, out: Tensor, **more: object) -> Arguments:
    return {"in": reads(data, "in"), "out": writes(out), **more}


def sweep_values() -> Tensor:
    """Every magnitude of normal floats, of both signs, the specials, and where conversions round or overflow.

    Left out: subnormals (the instructions flush them, the emulator's logarithm does not) and the few values whose 2^x is
    within the error bound of the smallest normal number.
    """
    exponents = torch.arange(-126, 128, dtype=torch.float64)
    mantissas = 1 + torch.rand(64, generator=generator(), dtype=torch.float64)
    magnitudes = (torch.exp2(exponents)[:, None] * mantissas).flatten()
    near_one = torch.linspace(0.25, 4, 4001, dtype=torch.float64)
    halves = torch.tensor([65504, 65519, 65520, 65536, 1e-7, 5.96e-8, 1.00390625, 1.01171875], dtype=torch.float64)
    x = torch.cat([magnitudes, near_one, halves, torch.linspace(0, 200, 2001, dtype=torch.float64)])
    x = torch.cat([x, -x, torch.tensor([math.inf, -math.inf, math.nan, -0.0], dtype=torch.float64)]).float()
    return x[~((x + 126).abs() < 0.01)]


def mma_arguments(make: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Arguments, Tensor]:
    """Fragments of a [16, 16] a, a [16, 8] b and a [16, 8] c as the ISA lays them out, and the sums of magnitudes."""
    a, b, c = make(16, 16, dtype=dtype), make(16, 8, dtype=dtype, seed=1), make(16, 8, dtype=torch.float32, seed=2)
    group, pair = LANES // 4, LANES % 4 * 2
    two = torch.arange(2)

    def pack(elements: Tensor) -> Tensor:
        return elements.contiguous().view(torch.int32).squeeze(-1)

    rows = torch.stack([group, group + 8, group, group + 8], 1)
    a_columns = torch.stack([pair, pair, pair + 8, pair + 8], 1)[..., None] + two
    b_rows = torch.stack([pair, pair + 8], 1)[..., None] + two
    c_rows = torch.stack([group, group, group + 8, group + 8], 1)
    c_columns = torch.stack([pair, pair + 1, pair, pair + 1], 1)
    arguments = {
        "a": reads(pack(a[rows[..., None], a_columns]), "a"),
        "b": reads(pack(b[b_rows, group[:, None, None]]), "b"),
        "c": reads(c[c_rows, c_columns].contiguous(), "c"),
        "out": writes(unwritten(32, 4, dtype=torch.float32)),
    }
    return arguments, (a.double().abs() @ b.double().abs() + c.abs())[c_rows, c_columns]


def wgmma_arguments(make: Callable[..., Tensor], n: int, dtype: torch.dtype, major: str) -> tuple[Arguments, Tensor]:
    a, b = make(64, 64, dtype=dtype), make(64, n, dtype=dtype, seed=1)
    stored = b.T.contiguous() if major == "k" else b
    out = writes(unwritten(64, n, dtype=torch.float32))
    return {"a": reads(a, "a"), "b": reads(stored, "b"), "out": out}, a.double().abs() @ b.double().abs()


def matrix_probes() -> list[Probe]:
    """mma and wgmma: whole numbers must agree in every bit (layout, operands), random ones within the bound."""
    probes = []

    def add(name: str, kernel: str, build: Callable, products: int, primitives: tuple[str, ...], sm90: bool) -> None:
        exact = Probe(f"{name} exact", kernel, primitives, lambda: build(integers)[0], same_bits, needs_sm90=sm90)
        close = sums(products, build(normals)[1])
        probes.append(exact)
        probes.append(Probe(f"{name} random", kernel, primitives, lambda: build(normals)[0], close, SUMS, sm90))

    for name, dtype in HALVES.items():
        kernel = f"mma_{name}"
        add(kernel, kernel, lambda make, d=dtype: mma_arguments(make, d), 17, ("mma_m16n8k16",), False)
    waiting = ("wgmma_descriptor", "wgmma_fence", "wgmma_commit", "wgmma_wait", "pin_registers")
    variants = [(n, "k", "ss") for n in (16, 32, 48)]
    variants += [(n, major, source) for n in (64, 128) for major in ("k", "mn") for source in ("ss", "rs")]
    for n, major, source in variants:
        for name, dtype in HALVES.items():
            kernel = f"wgmma_{n}_{name}_{major}_{source}"

            def build(make: Callable, n: int = n, dtype: torch.dtype = dtype, major: str = major) -> tuple:
                return wgmma_arguments(make, n, dtype, major)

            add(kernel, kernel, build, 64, (f"wgmma_{source}", *waiting), True)
    return probes


TMA_BOXES = {  # tensor shape, box and start (dimension 0 first), swizzle
    "2d inside, 128 B": ((20, 64), (64, 8), (0, 5), 3),
    "2d edges, none": ((20, 40), (16, 8), (32, 0), 0),
    "2d cut inside 16 bytes, 32 B": ((20, 44), (16, 8), (32, 0), 1),
    "2d left and top, 64 B": ((20, 40), (32, 8), (-8, -3), 2),
    "2d all outside": ((20, 40), (16, 4), (0, 20), 0),
    "3d row edge, 128 B": ((6, 5, 64), (64, 1, 8), (0, 4, 3), 3),
    "3d boxes, 64 B": ((6, 5, 32), (32, 3, 2), (0, 3, 5), 2),
    "4d page, 128 B": ((7, 16, 3, 64), (64, 1, 16, 1), (0, 2, 0, 4), 3),
    "4d page outside": ((7, 16, 3, 64), (64, 1, 16, 1), (0, 2, 0, 7), 3),
}


def tma_arguments(shape: tuple[int, ...], box: tuple[int, ...], start: tuple[int, ...], swizzle: int) -> Arguments:
    padded = -(-shape[-1] // 8) * 8  # rows lie at multiples of 16 bytes, with NaN between narrower ones
    tensor = torch.full((*shape[:-1], padded), math.nan).bfloat16()[..., : shape[-1]]
    tensor.copy_(torch.randn(shape, generator=generator()))
    out = unwritten(math.prod(box) // 2)
    arguments = in_out(tensor, out, rank=tensor.ndim, instruction_rank=tensor.ndim, swizzle=swizzle)
    for i, (size, stride) in enumerate(zip(reversed(tensor.shape), reversed(tensor.stride()))):
        arguments |= {f"size{i}": size, f"stride{i}": stride * 2, f"box{i}": box[i]}
    return arguments | {f"c{i}": ([*start, 0, 0])[i] for i in range(4)}


def tma_probes() -> list[Probe]:
    waits = ("mbarrier_init", "fence_mbarrier_init", "mbarrier_arrive_expect_tx", "mbarrier_wait")
    return [
        Probe(
            f"tma {name}",
            "tma",
            (f"tma_load_{len(shape)}d", *waits),
            lambda shape=shape, box=box, start=start, swizzle=swizzle: tma_arguments(shape, box, start, swizzle),
            same_bits,
            needs_sm90=True,
        )
        for name, (shape, box, start, swizzle) in TMA_BOXES.items()
    ]


def tma_store_arguments() -> Arguments:
    """A box that a tensor of 38 tokens, 16 heads of 128 elements cuts at its last token."""
    tensor = torch.full((38, 16, 128), 7.0).bfloat16()
    arguments = {"in": reads(bits(16, 32), "in"), "out": writes(tensor), "rank": 3, "swizzle": 3}
    for i, (size, stride, box) in enumerate(((128, 1, 64), (16, 128, 8), (38, 16 * 128, 2))):
        arguments |= {f"size{i}": size, f"stride{i}": stride * 2, f"box{i}": box}
    return arguments | {"c0": 64, "c1": 8, "c2": 37}


def ld_st_arguments() -> Arguments:
    arguments: Arguments = {}
    for width in (4, 8, 16):
        arguments[f"in{width}"] = reads(bits(32, width // 4), "in")
        arguments[f"out{width}"] = writes(unwritten(32, width // 4))
    return arguments


def cp_async_arguments(num_bytes: int) -> Arguments:
    data = torch.randint(1, 255, (32, 16), generator=generator(), dtype=torch.uint8)
    sizes = torch.arange(32, dtype=torch.int32) % (num_bytes + 1)
    return in_out(data, unwritten(32, 4), sizes=reads(sizes, "in"), bytes=num_bytes)


def cluster_arguments() -> Arguments:
    """Whole numbers, so that the sums are exact in any order."""
    data = (torch.arange(4 * 64 * 64) * 7 % 13 - 6).view(-1, 64).bfloat16()
    bias = (torch.arange(64) % 5).float()
    return in_out(data, unwritten(2, 128, dtype=torch.float32), bias=reads(bias, "in"), num_tiles=4)


def gemm_arguments(make: Callable[..., Tensor]) -> tuple[Arguments, Tensor]:
    a, b = make(128, 192, dtype=torch.bfloat16), make(128, 192, dtype=torch.bfloat16, seed=1)
    out = writes(unwritten(128, 128, dtype=torch.float32))
    arguments = {"a": reads(a, "a"), "b": reads(b, "b"), "out": out, "m": 128, "n": 128, "k": 192}
    return arguments, a.double().abs() @ b.double().abs().T


def small_probes() -> list[Probe]:
    """Everything else, a kernel each or a few primitives together."""
    access = ("ldg", "stg", "lds", "sts", "shared_storage", "smem_u32", "sync_warp", "lane_id", "thread_idx")
    loads = ("ldmatrix_x1", "ldmatrix_x2", "ldmatrix_x4", "ldmatrix_x2_trans", "ldmatrix_x4_trans")
    votes = ("shfl_xor", "shfl", "ballot", "any", "all")
    conversions = ("ex2", "lg2", "tanh_approx", "pack_half", "half_low", "half_high", "bit_cast")
    built_in = ("block_idx", "block_dim", "grid_dim")
    groups = ("cp_async", "cp_async_commit", "cp_async_wait")
    named = ("barrier_sync", "barrier_arrive", "sync_threads", "warp_id")
    phases = ("mbarrier_init", "mbarrier_arrive", "mbarrier_try_wait", "mbarrier_wait", "mbarrier_inval")
    handover = ("cp_async_mbarrier_arrive_noinc", "mbarrier_wait")
    cluster = ("cluster_rank", "cluster_arrive", "cluster_wait", "tma_load_2d_multicast", "mbarrier_arrive_remote")
    bulk = ("bulk_load", "bulk_store", "bulk_commit", "bulk_wait", "fence_proxy_async")
    moved = ("set_max_registers_up", "set_max_registers_down", "elect_one")

    def probe(kernel: str, primitives: tuple[str, ...], arguments: Callable[[], Arguments], **more: object) -> Probe:
        return Probe(kernel, kernel, primitives, arguments, **{"error": same_bits, **more})

    def tile() -> Arguments:
        return in_out(bits(32, 8, dtype=torch.int16), unwritten(5, 32, 4))

    def swept() -> Arguments:
        x = sweep_values()
        return in_out(x, unwritten(len(x), 7, dtype=torch.float32), num_values=len(x))

    def exchanged() -> Arguments:
        return in_out(torch.arange(256, dtype=torch.int32) * 3 + 1, unwritten(256), grid=2)

    return [
        probe("ld_st", access, ld_st_arguments),
        probe("ldmatrix", loads, tile),
        probe("shuffle", votes, lambda: in_out(normals(32, dtype=torch.float32), unwritten(32, 6))),
        probe(
            "sweep",
            (*conversions, *built_in),
            swept,
            error=approximations,
            bound="2^-22, tanh 2^-11; conversions equal",
        ),
        *(
            Probe(f"cp_async {n} bytes", "cp_async", groups, lambda n=n: cp_async_arguments(n), same_bits)
            for n in (4, 8, 16)
        ),
        probe("cp_async_groups", groups, lambda: in_out(bits(4, 32), unwritten(4, 32))),
        probe("exchange", named, exchanged),
        probe(
            "stmatrix",
            ("stmatrix_x4", "stmatrix_x4_trans"),
            lambda: in_out(bits(32, 4), unwritten(2, 32, 4)),
            needs_sm90=True,
        ),
        probe(
            "elect",
            ("elect_one",),
            lambda: {"out": writes(unwritten(32))},
            error=one_elected,
            bound="one lane",
            needs_sm90=True,
        ),
        probe("phases", phases, lambda: in_out(bits(128), unwritten(130)), needs_sm90=True),
        probe("handover", handover, lambda: in_out(bits(128), unwritten(128)), needs_sm90=True),
        probe(
            "tma_store",
            ("tma_store_3d", "bulk_wait_read", "fence_proxy_async"),
            tma_store_arguments,
            needs_sm90=True,
        ),
        probe("e4m3", ("e4m3_to_fp16",), lambda: {"out": writes(unwritten(65536))}, needs_sm90=True),
        probe(
            "dependent",
            ("launch_dependents", "wait_for_grid"),
            lambda: {"words": writes(unwritten(2048)), "out": writes(unwritten(2048))},
            needs_sm90=True,
        ),
        probe("cluster_sum", (*cluster, *bulk), cluster_arguments, needs_sm90=True),
        Probe("gemm exact", "gemm_sm90", moved, lambda: gemm_arguments(integers)[0], same_bits, needs_sm90=True),
        Probe(
            "gemm random",
            "gemm_sm90",
            moved,
            lambda: gemm_arguments(normals)[0],
            sums(192, gemm_arguments(normals)[1]),
            SUMS,
            needs_sm90=True,
        ),
    ]


def all_probes() -> list[Probe]:
    return [*small_probes(), *matrix_probes(), *tma_probes()]
